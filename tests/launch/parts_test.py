"""All scripts of launch/: shellcheck, --help, quoting, and nothing that bash 3.2 lacks."""
import pathlib
import re
import shutil
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / 'launch'
SCRIPTS = sorted(LAUNCH.glob('*.sh'))
STARTED = ('tpu.sh', 'queued.sh', 'xpk.sh', 'slurm.sh', 'local.sh')     # by a person, on a machine of theirs; macOS has bash 3.2


def test_shellcheck_has_nothing_to_say():
  shellcheck = shutil.which('shellcheck', path=str(pathlib.Path(sys.executable).parent)) or shutil.which('shellcheck')
  if not shellcheck:
    pytest.skip("shellcheck is not installed (pip install -e '.[test]')")
  names = [f'launch/{script.name}' for script in SCRIPTS]
  done = subprocess.run([shellcheck, '-x', *names], cwd=LAUNCH.parent, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('name', STARTED)
def test_help_shows_an_example_and_every_flag(stubs, name):
  done = stubs.run(name, '--help')
  assert done.returncode == 0 and f'launch/{name} ' in done.stdout
  source = (LAUNCH / name).read_text()
  declared = source.partition('set -euo pipefail')[2]
  if 'launch/pod.sh' in declared:
    declared += (LAUNCH / 'pod.sh').read_text()
  flags = {flag.replace('_', '-') for flag in re.findall(r'\b(?:flag|switch)_(\w+)=', declared)} | {'dry-run'}
  for flag in flags - {'n', 'env'}:
    assert re.search(rf'--{flag}[ =,]', done.stdout), flag
  for flag in set(re.findall(r'^  +--([a-z-]+)', done.stdout, re.M)):
    assert flag in flags | {'env'}, flag


@pytest.mark.parametrize('name', [*STARTED, 'parts.sh', 'pod.sh'])
def test_nothing_that_bash_3_lacks(name):
  lines = [line for line in (LAUNCH / name).read_text().splitlines() if not line.lstrip().startswith('#')]
  newer = re.compile(r'mapfile|readarray|declare -A|local -n|wait -n|\$\{\w+@\w\}|\$\{\w+(,,|\^\^)|EPOCH|\|&|&>>|coproc')
  assert not [line for line in lines if newer.search(line)]
  # an empty array is unbound there: "${x[@]}" of ARGS or ENV_NAMES must be guarded or stand where it cannot be empty
  assert not [line for line in lines if 'for ' in line and re.search(r'in "\$\{(ENV_NAMES|ARGS|groups)\[@\]\}"', line)]


@hypothesis.settings(max_examples=12, deadline=None)
@hypothesis.given(st.lists(st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=12), min_size=1, max_size=6))
def test_quoted_words_are_read_back_by_any_shell(words):
  script = '. launch/parts.sh; quote "$@"'
  quoted = subprocess.run(['bash', '-c', script, 'x', *words], cwd=LAUNCH.parent, capture_output=True, check=True).stdout
  for shell in ('bash', 'sh'):
    back = subprocess.run([shell, '-c', b"printf '%s\\0' " + quoted], capture_output=True, check=True).stdout
    assert back.decode().split('\0')[:-1] == words
