from distill_jax.stages.checks import check, check_models
from distill_jax.stages.choose import choose
from distill_jax.stages.dialogue import check as check_dialogue, dialogue
from distill_jax.stages.episodes import episodes
from distill_jax.stages.evaluate import evaluate
from distill_jax.stages.export import export
from distill_jax.stages.forecasts import FORECASTS as FORECASTS
from distill_jax.stages.generate import generate
from distill_jax.stages.grade import grade
from distill_jax.stages.infer import demonstrate, infer
from distill_jax.stages.label import label
from distill_jax.stages.rank import rank
from distill_jax.stages.search import index, search
from distill_jax.stages.train import train

STAGES = dict(generate=generate, grade=grade, label=label, train=train, evaluate=evaluate, dialogue=dialogue, export=export,
              search=search, rank=rank, index=index, infer=infer, demonstrate=demonstrate, episodes=episodes, choose=choose)
TOGETHER = ('generate', 'label', 'train', 'evaluate', 'dialogue', 'search', 'rank', 'index', 'infer', 'demonstrate', 'episodes', 'choose')      # what all hosts do; the others are the leader's alone
CHECKS = {name: check if name in ('generate', 'evaluate') else check_models for name in STAGES} | dict(dialogue=check_dialogue)
