"""Chips and slices: memory and speed of the TPU generations, and devices of a slice to compile for without having it."""
import contextlib
import os
from typing import Mapping, NamedTuple, Sequence

import jax
import numpy as np


class Chip(NamedTuple):
  """One chip. memory: bytes of HBM; flops: bfloat16 a second; bandwidth: of HBM, bytes a second; links: bytes a second that all links of
  the interconnect together send; axes: of the torus; kind: what JAX calls it; variant: of the compiler's chip (None: its default)."""
  memory: float
  flops: float
  bandwidth: float
  links: float
  axes: int
  kind: str = ''
  variant: str | None = None


# docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e: peak compute (bf16), HBM capacity and bandwidth, interconnect (ICI) bandwidth of a
# chip (given there as Gbit/s, and on newer pages for both directions together)
CHIPS: Mapping[str, Chip] = {
    'v4': Chip(32 * 2 ** 30, 275e12, 1228e9, 300e9, 3, 'TPU v4', 'megacore'),
    'v5e': Chip(16 * 2 ** 30, 197e12, 819e9, 200e9, 2, 'TPU v5 lite'),
    'v5p': Chip(95 * 2 ** 30, 459e12, 2765e9, 600e9, 3, 'TPU v5'),
    'v6e': Chip(32 * 2 ** 30, 918e12, 1640e9, 400e9, 2, 'TPU v6 lite'),
}
# dense bfloat16 operations a second of GPUs, by a part of the name that JAX gives: data sheets of the A100, H100, H200, B200, L4, L40S
# (www.nvidia.com/en-us/data-center); the first that fits counts
GPUS: Mapping[str, float] = {
    'H100 PCIe': 756e12, 'H100 NVL': 835e12, 'H100': 989e12, 'H200': 989e12, 'B200': 2250e12, 'A100': 312e12, 'L40S': 362e12, 'L4': 121e12}
RESERVED = 2 ** 28      # bytes of a chip's memory that the runtime keeps; programs may have the rest
HOST = 4      # chips of a host; a slice of fewer is one host
# what libtpu asks of the machine it believes to be on, and complains about; several may compile at once
_QUIET = dict(ALLOW_MULTIPLE_LIBTPU_LOAD='1', TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost', TPU_WORKER_ID='0',
              TPU_ACCELERATOR_TYPE='v5litepod-4', TF_CPP_MIN_LOG_LEVEL='3')


def peak(kind: str) -> float | None:
  """bfloat16 operations a second of a device of this kind (`jax.Device.device_kind`); None where it is not known (CPUs)."""
  return next((chip.flops for chip in CHIPS.values() if chip.kind == kind), None) or next((flops for name, flops in GPUS.items() if name in kind), None)


class Slice(NamedTuple):
  """name: as asked for; chip: None for a CPU, which has no roofline; devices: to make a mesh of and compile for."""
  name: str
  chip: Chip | None
  devices: Sequence[jax.Device]


def parse(name: str) -> tuple[str, tuple[int, ...]]:
  """('v6e', (16, 16)) of 'v6e:16x16'. ValueError: not of that form, or an unknown chip."""
  kind, _, shape = name.partition(':')
  sizes = shape.split('x')
  known = ', '.join(f'{chip}:{"x".join("4" * value.axes)}' for chip, value in CHIPS.items()) + ', cpu:8'
  if kind not in (*CHIPS, 'cpu') or not all(size.isdigit() and int(size) for size in sizes):
    raise ValueError(f'topology {name!r} is not known; give a chip and the size of its slice: {known}')
  axes = 1 if kind == 'cpu' else CHIPS[kind].axes
  if len(sizes) != axes:
    raise ValueError(f'topology {name!r}: a slice of {kind} has {axes} size{"s" * (axes > 1)}, as in {known}')
  return kind, tuple(map(int, sizes))


def prepare(names: Sequence[str]) -> None:
  """Before JAX makes its first device: as many CPU devices as a 'cpu:N' among `names` needs, and the host's own backend."""
  jax.config.update('jax_platforms', 'cpu')
  for variable, value in _QUIET.items():
    os.environ.setdefault(variable, value)
  most = max([sizes[0] for kind, sizes in map(parse, names) if kind == 'cpu'], default=0)
  if most and 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={most}'.strip()


def slice_of(name: str) -> Slice:
  """The Slice of a name such as 'v6e:16x16' or 'cpu:8'. ValueError: as `parse`, or a slice that does not exist. ImportError: no libtpu."""
  kind, sizes = parse(name)
  if kind == 'cpu':
    devices = jax.devices('cpu')
    if len(devices) < sizes[0]:
      raise ValueError(f'topology {name!r}: this process has {len(devices)} CPU devices; '
                       f'set XLA_FLAGS=--xla_force_host_platform_device_count={sizes[0]}')
    return Slice(name, None, devices[:sizes[0]])
  try:
    import libtpu  # noqa: F401 (the compiler)
  except ImportError:
    raise ImportError(f"topology {name!r}: the TPU compiler is not installed; no TPU is needed for it: pip install -e '.[tpu]'") from None
  from jax.experimental import topologies
  chip = CHIPS[kind]
  count = 1
  for size in sizes:
    count *= size
  options = {} if chip.variant is None else dict(chip_config_name=chip.variant)
  if count < HOST:
    options['chips_per_host_bounds'] = (*sizes, 1, 1)[:3]
  try:
    with quiet():
      devices = topologies.get_topology_desc(topology_name=name, platform='tpu', **options).devices
  except Exception as error:      # the runtime's own error type
    raise ValueError(f'topology {name!r}: there is no such slice ({str(error).splitlines()[0]})') from None
  return Slice(name, chip, devices)


def apart(devices: np.ndarray) -> np.ndarray:
  """The same places in a slice that these devices fill by themselves; as they are where they fill none.

  For a program of some chips of a slice: the compiler takes programs for whole slices only.
  """
  flat = devices.reshape(-1)
  name = next((name for name, chip in CHIPS.items() if chip.kind == flat[0].device_kind), None)
  if name is None:
    return devices
  places = np.asarray([device.coords for device in flat])
  low, size = places.min(0), np.ptp(places, axis=0) + 1
  if np.prod(size) != len(flat):
    return devices
  try:
    found = {tuple(device.coords): device for device in slice_of(f'{name}:{"x".join(map(str, size[:CHIPS[name].axes]))}').devices}
  except ValueError:
    return devices
  out = np.empty(len(flat), object)
  out[:] = [found[tuple(int(x) for x in place - low)] for place in places]
  return out.reshape(devices.shape)


@contextlib.contextmanager
def quiet():
  """While it holds nothing written to file descriptor 2 is shown: libtpu's complaints on a machine without a TPU. Errors still raise."""
  kept = os.dup(2)
  nowhere = os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(nowhere, 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nowhere)
