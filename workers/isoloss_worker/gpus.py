"""The GPUs of this machine, through NVML where it is there: which, their names, the energy they have used.

A GPU goes by what ``CUDA_VISIBLE_DEVICES`` calls it: a number in PCI order, ``GPU-…`` or ``MIG-…``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from isoloss.errors import InvalidSpec

GpuIds = tuple[str, ...]
NAME: Final = re.compile(r"\d{1,4}|(GPU|MIG)-[0-9a-fA-F][\w/-]*")


def visible(environment: Mapping[str, str] = os.environ) -> GpuIds:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves this process, else all there are; CUDA reads to the first wrong name."""
    with _nvml() as nvml:
        count = int(nvml.nvmlDeviceGetCount()) if nvml else len(list(Path("/dev").glob("nvidia[0-9]*")))
        stated = environment.get("CUDA_VISIBLE_DEVICES")
        if stated is None:
            return tuple(str(number) for number in range(count))
        found: list[str] = []
        for word in stated.split(","):
            gpu = word.strip()
            is_there = NAME.fullmatch(gpu) and (_handle(nvml, gpu) if nvml else not gpu.isdecimal() or int(gpu) < count)
            if not is_there or gpu in found:
                break
            found.append(gpu)
    return tuple(found)


def chosen(text: str, environment: Mapping[str, str] = os.environ) -> GpuIds:
    """What ``--gpus`` says: ``auto``, ``none``, or names with commas; ``InvalidSpec`` for one that is not there."""
    if text in ("auto", "none"):
        return visible(environment) if text == "auto" else ()
    names = tuple(word.strip() for word in text.split(","))
    accepted = "accepted is auto, none, or names with commas as CUDA_VISIBLE_DEVICES has them: 0,1 or GPU-… or MIG-…"
    with _nvml() as nvml:
        for gpu in names:
            if not NAME.fullmatch(gpu) or names.count(gpu) > 1:
                raise InvalidSpec(f"--gpus is {text!r}; {accepted}, each once.")
            if nvml and _handle(nvml, gpu) is None:
                raise InvalidSpec(f"--gpus names {gpu!r}, which is no GPU of this machine; {accepted}.")
    return names


@contextlib.contextmanager
def held(gpu_ids: GpuIds) -> Iterator[None]:
    """Hold the GPUs against other workers of this machine.

    Raises ``InvalidSpec`` when one is another worker's: two would run out of each other's memory.
    """
    folder = Path(tempfile.gettempdir()) / "isoloss-gpus"
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(PermissionError):  # another user made it, for all
        folder.chmod(0o1777)
    with contextlib.ExitStack() as files:
        for gpu, name in zip(gpu_ids, _uuids(gpu_ids), strict=True):
            descriptor = _opened(folder / name.replace("/", "_"))
            files.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InvalidSpec(
                    f"GPU {gpu} is another worker's on this machine; accepted are GPUs that no worker has.",
                    hint="One worker with more --slots shares its GPUs; or give each worker its own with --gpus.",
                ) from None
        yield


def describe(gpu_ids: GpuIds) -> str:
    """The device as people name it: ``2 × NVIDIA H200``, or ``cpu``."""
    if not gpu_ids:
        return "cpu"
    with _nvml() as nvml:
        if nvml is None:
            return f"{len(gpu_ids)} × GPU"
        names = [_text(nvml.nvmlDeviceGetName(_handle(nvml, gpu))) for gpu in gpu_ids]
    kinds = sorted(set(names))
    return ", ".join(kind if names.count(kind) == 1 else f"{names.count(kind)} × {kind}" for kind in kinds)


def millijoules(gpu_ids: GpuIds) -> int | None:
    """Energy the devices have used since their driver was loaded, together; ``None`` where it is not measured."""
    if not gpu_ids:
        return None
    with _nvml() as nvml:
        if nvml is None:
            return None
        try:
            return sum(int(nvml.nvmlDeviceGetTotalEnergyConsumption(_handle(nvml, gpu))) for gpu in gpu_ids)
        except nvml.NVMLError:
            return None


def load(gpu_ids: GpuIds) -> tuple[float, float, float] | None:
    """Utilisation (of 1, their mean), bytes in use and bytes there are of the GPUs; ``None`` where NVML does not say."""
    if not gpu_ids:
        return None
    with _nvml() as nvml:
        if nvml is None:
            return None
        try:
            handles = [_handle(nvml, gpu) for gpu in gpu_ids]
            busy = [nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100 for handle in handles]
            memory = [nvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        except nvml.NVMLError:  # a MIG slice has no utilisation of its own
            return None
    return sum(busy) / len(busy), float(sum(one.used for one in memory)), float(sum(one.total for one in memory))


def _opened(file: Path) -> int:
    """A descriptor of a file that every user may open: in a sticky folder the kernel lets nobody else open it to create it."""
    with contextlib.suppress(FileNotFoundError):
        return os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    descriptor = os.open(file, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW)
    os.fchmod(descriptor, 0o644)
    return descriptor


def _uuids(gpu_ids: GpuIds) -> list[str]:
    """The one name of each that does not depend on who sees which; as given where there is no NVML to ask."""
    with _nvml() as nvml:
        if nvml is None:
            return list(gpu_ids)
        return [_text(nvml.nvmlDeviceGetUUID(_handle(nvml, gpu))) for gpu in gpu_ids]


def _handle(nvml: ModuleType, gpu: str) -> Any:
    """NVML's handle, ``None`` for what is not there; CUDA takes the beginning of a UUID too."""
    try:
        if gpu.isdecimal():
            return nvml.nvmlDeviceGetHandleByIndex(int(gpu))
        for number in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            if _text(nvml.nvmlDeviceGetUUID(handle)).startswith(gpu):
                return handle
        return nvml.nvmlDeviceGetHandleByUUID(gpu.encode())
    except nvml.NVMLError:
        return None


@contextlib.contextmanager
def _nvml() -> Iterator[ModuleType | None]:
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
