"""Tasks by name: a config says one of these. RECORDED: who reads a file of recorded completions for a task, where it is not gsm8k.recorded."""
from distill_jax.tasks import bbh as _bbh, commonsense_qa as _commonsense_qa, humaneval as _humaneval, svamp as _svamp
from distill_jax.tasks.aqua import aqua
from distill_jax.tasks.bbh import bbh
from distill_jax.tasks.coin_flip import coin_flip
from distill_jax.tasks.commands import commands
from distill_jax.tasks.commonsense_qa import commonsense_qa
from distill_jax.tasks.facts import facts
from distill_jax.tasks.families import families
from distill_jax.tasks.gsm8k import gsm8k
from distill_jax.tasks.gsm8k_cot import gsm8k_cot
from distill_jax.tasks.humaneval import humaneval
from distill_jax.tasks.last_letter import last_letter
from distill_jax.tasks.mawps import mawps
from distill_jax.tasks.parsing import break_qdmr, smcalflow
from distill_jax.tasks.program_texts import program_texts
from distill_jax.tasks.programs import programs
from distill_jax.tasks.sets import sets
from distill_jax.tasks.shuffled_objects import shuffled_objects
from distill_jax.tasks.socratic import socratic
from distill_jax.tasks.stories import stories
from distill_jax.tasks.strategyqa import strategyqa
from distill_jax.tasks.sums import sums
from distill_jax.tasks.svamp import svamp

TASKS = dict(gsm8k=gsm8k, gsm8k_cot=gsm8k_cot, svamp=svamp, mawps=mawps, aqua=aqua, commonsense_qa=commonsense_qa, strategyqa=strategyqa,
             last_letter=last_letter, coin_flip=coin_flip, shuffled_objects=shuffled_objects, sums=sums, bbh=bbh, socratic=socratic,
             program_texts=program_texts, programs=programs, stories=stories, humaneval=humaneval,
             commands=commands, break_qdmr=break_qdmr, smcalflow=smcalflow,
             families=families, facts=facts, sets=sets)
RECORDED = dict(svamp=_svamp.recorded, commonsense_qa=_commonsense_qa.recorded, bbh=_bbh.recorded, humaneval=_humaneval.recorded)
