"""Functions of tensors on a card, recorded once for inputs of one kind as CUDA graphs and replayed.

A chart is a thousand small kernels, and starting one takes ten times as long as it runs; a graph starts them all at once,
and computes the same bits. A recording has memory of its own, which each replay overwrites: a result that another replay has
overwritten is replayed when it is next read. A recorded function may use its inputs alone, and neither wait for the card nor
read a number from it (`torch.cuda.graph`).

Memory is bounded: recordings unused for longest are dropped first, and what can't be recorded is computed kernel by kernel.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from surgery.errors import first_line

SHARE = 8  # recordings may take one part in so many of the card's memory
MOST_KEYS = 512  # kinds of inputs that are remembered as seen

Function = Callable[..., Any]


@runtime_checkable
class Recorded(Protocol):
    """A function recorded with the inputs that it will always read."""

    state: Any  # what the function returned; of the latest play
    size: int  # bytes that it holds

    def play(self) -> None:
        """Run the function on what its inputs hold now."""


class CudaGraph:
    """A function captured in a CUDA graph."""

    device: torch.device
    graph: torch.cuda.CUDAGraph

    streams: dict[torch.device, torch.cuda.Stream] = {}  # noqa: RUF012 (one for each card: each keeps cuBLAS a workspace)

    def __init__(self, function: Function, inputs: Sequence[Tensor], beside: "CudaGraph | None" = None) -> None:
        """With `beside`, in the memory pool of that graph, whose result stays readable."""
        device: torch.device = inputs[0].device if beside is None else beside.device
        pool = None if beside is None else beside.graph.pool()
        self.device = device
        with torch.cuda.device(device):
            current = torch.cuda.current_stream()
            side = self.streams.setdefault(device, torch.cuda.Stream())
            side.wait_stream(current)
            try:
                with torch.cuda.stream(
                    side
                ):  # left whatever fails: torch.cuda.graph doesn't leave it if a capture does
                    function(*inputs)  # kernels are loaded and libraries start up: neither may happen in a capture
                    torch.cuda.synchronize()
                    torch.cuda.empty_cache()
                    before = torch.cuda.memory_reserved()
                    self.graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(self.graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                        self.state = function(*inputs)
                    self.size = max(0, torch.cuda.memory_reserved() - before)
            finally:
                current.wait_stream(side)

    def play(self) -> None:
        """Run it once more, on the current stream."""
        self.graph.replay()


class Recording:
    """A recorded function with inputs of its own, and recordings of what is asked of its result; `turn` counts its plays."""

    def __init__(
        self,
        record: Callable[..., Recorded],
        function: Function,
        given: Sequence[Tensor],
        beside: Recorded | None = None,
    ):
        self.inputs = [torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x) for x in given]
        self.made = record(function, self.inputs) if beside is None else record(function, self.inputs, beside)
        self.own = self.made.size + sum(x.nbytes for x in self.inputs)
        self.turn = 0
        self.questions: dict[Hashable, Recording] = {}

    @property
    def size(self) -> int:
        """Bytes that it and the questions hold."""
        return self.own + sum(question.own for question in self.questions.values())

    @torch.inference_mode()
    def play(self, given: Sequence[Tensor]) -> int:
        """Run on these; the number of this turn."""
        if given:
            torch._foreach_copy_(self.inputs, list(given))
        self.made.play()
        self.turn += 1
        return self.turn


class Once:
    """What a function returned that was run kernel by kernel."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def read(self, function: Callable[[Any], Any]) -> Any:
        """What the function makes of it."""
        return function(self.state)

    def ask(self, name: Hashable, function: Function, given: Sequence[Tensor], cut: Callable[[Any], Any]) -> Any:
        """What `cut` leaves of what the function makes of it and of these tensors."""
        with torch.no_grad():
            return cut(function(self.state, *given))


class Replayed:
    """The result of one replay, played again where another replay has overwritten its memory since it was last read."""

    def __init__(self, home: "Recordings", recording: Recording, given: Sequence[Tensor]) -> None:
        self.home, self.recording, self.given, self.turn = home, recording, tuple(given), 0
        self.read(lambda state: None)

    @property
    def state(self) -> Any:
        """What the memory holds now, perhaps of another replay: only sizes and types can be relied on."""
        return self.recording.made.state

    def read(self, function: Callable[[Any], Any]) -> Any:
        """What the function makes of it: tensors of its own, as the next replay overwrites what is here."""
        with torch.no_grad(), self.home.alone(self.given[0].device):
            if self.turn != self.recording.turn or not self.turn:
                self.turn = self.recording.play(self.given)
            return function(self.state)

    def ask(self, name: Hashable, function: Function, given: Sequence[Tensor], cut: Callable[[Any], Any]) -> Any:
        """As `Once.ask`, by a recording of its own, which is known by this name; the tensors are copies.

        The name must say everything that the function depends on but for its inputs.
        """
        return self.read(lambda state: _copied(cut(self.home.answer(self.recording, name, function, given))))


def _copied(state: Any) -> Any:
    return state.clone() if isinstance(state, Tensor) else tuple(x.clone() for x in state)


class Recordings:
    """Recordings by kind of function and inputs.

    Attributes:
        limit: bytes of all recordings together on a card; None for one part in `SHARE` of its memory.
        failures: why what couldn't be recorded couldn't, by kind.
    """

    def __init__(self, record: Callable[..., Recorded] = CudaGraph, limit: int | None = None) -> None:
        self.record, self.limit, self.enabled = record, limit, True
        self.kept: OrderedDict[Hashable, Recording] = OrderedDict()
        self.seen: OrderedDict[Hashable, None] = OrderedDict()
        self.failures: dict[Hashable, str] = {}
        self.lock = threading.RLock()
        self.done: dict[torch.device, torch.cuda.Event] = {}

    def run(self, name: Hashable, function: Function, given: Sequence[Tensor]) -> Once | Replayed:
        """What the function returns for these inputs: run as it is the first time, recorded the second, replayed from then on.

        `name` must say everything that the function depends on but for the inputs' values, types and sizes.
        """
        key = (name, _precision(), *((x.shape, x.dtype, x.device) for x in given))
        with self.lock:
            recording = self.kept.get(key) if self.enabled else None
            if recording is None and self._is_worth_it(key):
                recording = self._recorded(key, function, given)
            if recording is not None:
                self.kept.move_to_end(key)
                return Replayed(self, recording, given)
        return Once(function(*given))

    def answer(self, recording: Recording, name: Hashable, function: Function, given: Sequence[Tensor]) -> Any:
        """What the function makes of what a recording holds and of these tensors: recorded, too, in the same memory."""
        asked, made = recording.questions, recording.made

        def run(*tensors: Tensor) -> Any:
            return function(made.state, *tensors)

        key = (name, _precision(), *((x.shape, x.dtype) for x in given))
        if key not in asked:
            device = recording.inputs[0].device
            question = None if key in self.failures else self._made(key, run, given, made)
            if question is None:
                return run(*given)
            asked[key] = question
            self._keep_to(self.most(device))
        asked[key].play(given)
        return asked[key].made.state

    def forget(self) -> None:
        """Give all memory back but that of results that somebody still holds."""
        with self.lock:
            while self.kept:
                self._drop_oldest()

    def most(self, device: torch.device) -> int:
        """Bytes that all recordings together may take on this device."""
        if self.limit is not None:
            return self.limit
        return torch.cuda.get_device_properties(device).total_memory // SHARE

    @contextmanager
    def alone(self, device: torch.device) -> Iterator[None]:
        """One reader at a time, whatever streams they use: graphs share cuBLAS's workspace."""
        with self.lock:
            if device.type != "cuda":
                yield
                return
            stream = torch.cuda.current_stream(device)
            if device in self.done:
                stream.wait_event(self.done[device])
            with torch.cuda.device(device):
                yield
                self.done.setdefault(device, torch.cuda.Event()).record(stream)

    def _is_worth_it(self, key: Hashable) -> bool:
        """Whether inputs of this kind come again: recording takes as long as running three times."""
        if not self.enabled or key in self.failures:
            return False
        if key in self.seen:
            return True
        self.seen[key] = None
        if len(self.seen) > MOST_KEYS:
            self.seen.popitem(last=False)
        return False

    def _recorded(self, key: Hashable, function: Function, given: Sequence[Tensor]) -> Recording | None:
        device = given[0].device
        with self.alone(device):
            recording = self._made(key, function, given)
        if recording is None:
            return None
        most = self.most(device)
        if recording.size > most:
            self.failures[key] = f"it takes {recording.size:,} bytes of the {most:,} that recordings may take"
            return None
        self.kept[key] = recording
        self._keep_to(most)
        return recording

    def _made(self, key: Hashable, function: Function, given: Sequence[Tensor], *beside: Recorded) -> Recording | None:
        """A recording, if there can be one."""
        try:
            with torch.inference_mode():
                return Recording(self.record, function, given, *beside)
        except RuntimeError as error:  # out of memory too
            self.failures[key] = str(error)
            self.forget()
            warnings.warn(
                f"A chart couldn't be recorded as a CUDA graph ({first_line(error)}): such charts are computed kernel by kernel, slower and with the same result.",
                RuntimeWarning,
                stacklevel=2,
            )
            return None

    def _keep_to(self, most: int) -> None:
        while self.kept and sum(kept.size for kept in self.kept.values()) > most:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, recording = self.kept.popitem(last=False)
        if recording.inputs[0].is_cuda:
            torch.cuda.synchronize(recording.inputs[0].device)  # some stream may still be at it


def _precision() -> str:
    """What a matrix product in float32 is computed in: TF32 or not."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set in torch's old way and in its new one at once
        return ""


charts = Recordings()
