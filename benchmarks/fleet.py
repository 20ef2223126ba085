"""A fleet that predicts photos: what it can do at most, and a simulation of it.

Each GPU has a process of its own, as `carvana_tf.shards` divides photos: threads that read and
decode, the network, and threads that encode and write, with bounded channels between them, as in
`carvana_tf.inference.pipeline`.
"""

import dataclasses
import heapq
import random
from collections import deque
from collections.abc import Callable, Generator, Iterator

_CHANNEL = 2
"""Photos that wait between two pools of a process, as in its pipeline."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """What one photo takes, in seconds of one thread or device, and in bytes.

    Attributes:
        decode: From the file's bytes to the network's input.
        network: On one device.
        encode: From the network's output to the file's bytes.
        read_bytes: Size of its file.
        written_bytes: Size of its mask's file.
        operations: Requests to the file system: to open, read, create, sync, rename, …
    """

    decode: float
    network: float
    encode: float
    read_bytes: float
    written_bytes: float
    operations: float


@dataclasses.dataclass(frozen=True)
class Fleet:
    """Machines and the storage that they share.

    Attributes:
        gpus: How many devices there are, a process each.
        gpus_per_machine: How many of them share a machine; the last one may have fewer.
        cores: Processor cores of a machine.
        threads: Threads of a process that read, and as many that write.
        nic: Bytes/s of a machine's network.
        bandwidth: Bytes/s of the storage, read and written together.
        operations: Requests/s of the storage.
        latency: Seconds from a request to its answer, of reading and of writing a file each.
    """

    gpus: int
    gpus_per_machine: int
    cores: int
    threads: int
    nic: float
    bandwidth: float
    operations: float
    latency: float

    @property
    def machines(self) -> int:
        """How many there are."""
        return -(-self.gpus // self.gpus_per_machine)


def capacities(fleet: Fleet, photo: Photo) -> dict[str, float]:
    """Photos/s that each part could do if all others took no time; the least is the fleet's.

    The bound of bottleneck analysis (Lazowska et al., Quantitative System Performance, 1984,
    chapter 5): capacity over demand, for each resource.
    """
    transfer = photo.read_bytes + photo.written_bytes
    threads = fleet.gpus * fleet.threads
    read = fleet.latency + _transfer(fleet, photo.read_bytes) + photo.decode
    write = fleet.latency + _transfer(fleet, photo.written_bytes) + photo.encode
    return {
        "devices": fleet.gpus / photo.network,
        "processors": fleet.machines * fleet.cores / (photo.decode + photo.encode),
        "reading threads": threads / read,
        "writing threads": threads / write,
        "network of the machines": fleet.machines * fleet.nic / transfer,
        "storage: bytes": fleet.bandwidth / transfer,
        "storage: requests": fleet.operations / photo.operations,
    }


def _transfer(fleet: Fleet, size: float) -> float:
    """Seconds that a file alone takes through the network and the storage."""
    return size / fleet.nic + size / fleet.bandwidth


def bottleneck(fleet: Fleet, photo: Photo) -> tuple[str, float]:
    """What saturates first, and the photos/s of the fleet."""
    each = capacities(fleet, photo)
    name = min(each, key=lambda part: each[part])
    return name, each[name]


def simulate(
    fleet: Fleet, photo: Photo, photos_per_gpu: int, spread: float = 0.3, seed: int = 80
) -> float:
    """Photos/s of a fleet, by events; of the middle half of the photos, without start and end.

    Args:
        fleet: The machines.
        photo: What a photo takes on average.
        photos_per_gpu: How many each process predicts.
        spread: Standard deviation of decoding and encoding times over their means (gamma
            distribution); networks take equally long for each photo.
        seed: Of these times.
    """
    clock = _Clock()
    storage = _Servers(1), _Servers(1)
    draw = random.Random(seed)

    def varied(mean: float) -> float:
        return draw.gammavariate(1 / spread**2, mean * spread**2) if spread else mean

    done: list[float] = []
    for first in range(0, fleet.gpus, fleet.gpus_per_machine):
        machine = _Machine(_Servers(fleet.cores), _Servers(1), *storage)
        for _ in range(first, min(first + fleet.gpus_per_machine, fleet.gpus)):
            _start(clock, fleet, photo, machine, photos_per_gpu, varied, done)
    clock.run()
    low, high = len(done) // 4, 3 * len(done) // 4
    return (high - low) / (done[high] - done[low])


@dataclasses.dataclass(frozen=True)
class _Machine:
    """What the processes of a machine share; `requests` and `transfers` are of all machines."""

    cores: "_Servers"
    nic: "_Servers"
    requests: "_Servers"
    transfers: "_Servers"


def _start(
    clock: "_Clock",
    fleet: Fleet,
    photo: Photo,
    machine: _Machine,
    count: int,
    varied: Callable[[float], float],
    done: list[float],
) -> None:
    """Starts the threads of one GPU's process.

    Args:
        clock: Lets them go on.
        fleet: All machines.
        photo: What a photo takes on average.
        machine: That the process is on.
        count: How many photos it predicts.
        varied: Draws a time by its mean.
        done: Gets the time of each photo's end.
    """
    left = count
    room, prepared = _Tokens(_CHANNEL), _Tokens(0)
    outputs_room, predicted = _Tokens(_CHANNEL), _Tokens(0)

    def file(size: float) -> Iterator[float]:
        yield machine.requests.serve(clock.now, photo.operations / 2 / fleet.operations)
        yield machine.transfers.serve(clock.now, size / fleet.bandwidth)
        yield machine.nic.serve(clock.now, size / fleet.nic)
        yield clock.now + fleet.latency

    def read() -> _Thread:
        nonlocal left
        while left:
            left -= 1
            yield from file(photo.read_bytes)
            yield machine.cores.serve(clock.now, varied(photo.decode))
            yield room
            clock.release(prepared)

    def network() -> _Thread:
        for _ in range(count):
            yield prepared
            yield clock.now + photo.network
            clock.release(room)
            yield outputs_room
            clock.release(predicted)

    def write() -> _Thread:
        while True:
            yield predicted
            clock.release(outputs_room)
            yield machine.cores.serve(clock.now, varied(photo.encode))
            yield from file(photo.written_bytes)
            done.append(clock.now)

    for body in (read, write):
        for _ in range(fleet.threads):
            clock.start(body())
    clock.start(network())


class _Servers:
    """Equal servers with one queue, first come, first served."""

    def __init__(self, count: int) -> None:
        self._free = [0.0] * count

    def serve(self, now: float, seconds: float) -> float:
        """When a request that comes now, and takes so long, has been answered."""
        end = max(now, self._free[0]) + seconds
        heapq.heapreplace(self._free, end)
        return end


class _Tokens:
    """Places in a channel, or what is in it; threads wait for one."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.waiting: deque[_Thread] = deque()


# A thread yields when it goes on, or what it waits for.
_Thread = Generator[float | _Tokens, None, None]


class _Clock:
    """Lets threads go on, each at its time.

    Attributes:
        now: Seconds since the start.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, _Thread]] = []
        self._number = 0

    def start(self, thread: _Thread, at: float = 0.0) -> None:
        """Lets a thread go on at a time."""
        self._number += 1  # equal times in the order in which they were asked for
        heapq.heappush(self._queue, (at, self._number, thread))

    def release(self, tokens: _Tokens) -> None:
        """Gives one to the thread that waits longest, if any."""
        if tokens.waiting:
            self.start(tokens.waiting.popleft(), self.now)
        else:
            tokens.count += 1

    def run(self) -> None:
        """Until no thread has anything to do."""
        while self._queue:
            self.now, _, thread = heapq.heappop(self._queue)
            for wanted in thread:
                if isinstance(wanted, float):
                    self.start(thread, wanted)
                    break
                if not wanted.count:
                    wanted.waiting.append(thread)
                    break
                wanted.count -= 1
