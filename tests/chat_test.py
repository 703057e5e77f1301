"""Talking to a checkpoint: what it is asked, what it may not exceed, what it says where there is none."""
import argparse
import io

import jax
import pytest

from distill_jax import chat
from distill_jax.core.types import Role
from distill_jax.data import text as text_lib
from distill_jax.decode import sample
from distill_jax.models import MODELS
from distill_jax.stages import roles

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(scope='module')
def role():
  text = text_lib.train_bpe(['How many pens does she have?\nShe has 3 pens.\n#### 3'] * 4, size=270)
  config = dict(vocab_size=text.vocab_size, width=8, layers=1, heads=2, mlp_width=16, max_length=64)
  model = MODELS['transformer'](**config)
  return Role(model, text, model.init(jax.random.key(0)), '')


def options(**changes):
  return argparse.Namespace(**{**vars(chat.flags().parse_args(['d'])), 'max_new_tokens': 8, **changes})


def asked(monkeypatch, role, lines, **changes):
  """The prompts that reach the model."""
  prompts = []

  def write(role, params, given, ids, key, **keywords):
    prompts.extend(given)
    return [[dict(text=f'reply {len(prompts)}', finished=True)]], dict(cut_prompts=0)

  monkeypatch.setattr(sample, 'write', write)
  return prompts, list(chat.replies(role, lines, options=options(**changes)))


def test_lines_are_prompts_without_a_template(monkeypatch, role):
  assert asked(monkeypatch, role, ['one', 'two']) == (['one\n', 'two\n'], ['reply 1', 'reply 2'])
  assert asked(monkeypatch, role, ['one'], raw=True)[0] == ['one']


def test_a_template_gets_the_conversation_and_old_turns_leave_first(monkeypatch, role):
  tokenizer = text_lib.train_bpe(['a'], size=258).tokenizer
  tokenizer.chat_template = TEMPLATE
  talking = role._replace(text=text_lib.wrap(tokenizer))
  prompts, _ = asked(monkeypatch, talking, ['ab', 'cd'])
  assert prompts == ['<user>ab<assistant>', '<user>ab<assistant>reply 1<user>cd<assistant>']
  prompts, _ = asked(monkeypatch, talking, ['x' * 20, 'cd'])
  assert prompts[1] == '<user>cd<assistant>', '64 tokens less 8 new ones do not hold both turns'
  assert asked(monkeypatch, talking, ['ab'], raw=True)[0] == ['ab']


def test_new_tokens_fit_the_model(role):
  assert chat.room(role, None) == (32, 32)
  assert chat.room(role, 10) == (10, 54)


def test_a_checkpoint_answers_and_ends_quietly(role, tmp_path, monkeypatch, capsys):
  roles.save_role(tmp_path / 'student', role, role.params)
  monkeypatch.setattr('sys.stdin', io.StringIO('How many?\n\n'))
  assert chat.main([str(tmp_path / 'student'), '--max_new_tokens=4', '--temperature=0.5', '--calculator']) == 0
  said = capsys.readouterr()
  assert said.out.strip() and said.err == ''


def test_what_is_no_checkpoint_is_one_clear_error(role, tmp_path, capsys):
  assert chat.main([str(tmp_path / 'none')]) == 1
  assert str(tmp_path / 'none') in capsys.readouterr().err
  roles.save_role(tmp_path / 'student', role, role.params)
  assert chat.main([str(tmp_path)]) == 1
  assert f'There are checkpoints in {tmp_path / "student"}' in capsys.readouterr().err
