"""Compare all clients on a link.

The time includes connecting. In each round all clients run one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Final

from .delay import delayed
from .rivals import OURS, PARAMIKO, SFTP, Rival, rivals
from .site import CIPHER, site, site_at
from .targets import ClientTable, Options, Row
from .workloads import WORKLOADS, Bench, Result, Workload

LINKS: Final = {"loopback": (0.0, 512), "50 ms": (0.05, 256)}
"""Round trip of each link in seconds, and MiB of the large file."""
CPU_TARGETS: Final = {SFTP.name: 0.7, PARAMIKO.name: 1.0}
"""Most CPU for a large file, as a multiple of another client's."""
SECONDS: Final = "sftp, seconds"


def measure(options: Options) -> Iterator[Row | ClientTable]:
    """Measure all clients over loopback.

    :param options: how much is measured
    :returns: rows, a table of speeds, and a table of CPU
    """
    return measure_link("loopback", options)


def measure_link(link: str, options: Options) -> Iterator[Row | ClientTable]:
    """Measure all clients on a link.

    :param link: one of `LINKS`
    :param options: how much is measured
    :returns: rows and tables
    """
    wanted = {OURS.name, SFTP.name, *options.clients}
    clients = [client for client in rivals() if not options.clients or client.name in wanted]
    round_trip, full_size = LINKS[link]
    size = options.count(full_size)
    results: dict[str, tuple[Workload, Result]] = {}
    with site() as near, delayed(near.port, round_trip) if round_trip else nullcontext(near.port) as port:
        bench = Bench(site_at(near, port), size, options)
        for workload in WORKLOADS:
            title = f"{bench.title(workload)}, {link}"
            if options.includes(title):
                result = bench.measure(workload, clients, options.rounds)
                results[title] = workload, result
                target = workload.targets[1 if round_trip else 0]
                yield from rows(title, result, target, {} if round_trip else workload.rivals)
    if results:
        yield _speeds(link, results, clients, options.rounds)
    large = {title: result for title, (work, result) in results.items() if work.name in ("up", "down")}
    if large and not round_trip:
        for title, result in large.items():
            yield from cpu_rows(title, result)
        yield _cpu_table(large, clients, size)


def rows(title: str, result: Result, target: float | None, others: Mapping[str, float]) -> Iterator[Row]:
    """Return the rows of a workload.

    :param title: title of the workload
    :param result: seconds of each client
    :param target: least speed as a multiple of the sftp command's
    :param others: least speed as a multiple of another client's, by its name
    """
    targets = others if target is None else {SFTP.name: target, **others}
    for name, least in targets.items():
        if name in result.seconds:
            yield Row(title, f"speed / {name}", result.median(name) / result.median(OURS.name), least, at_least=True)


def cpu_rows(title: str, result: Result) -> Iterator[Row]:
    """Return the rows for the CPU of a workload.

    :param title: title of the workload
    :param result: seconds of CPU of each client
    """
    for name, most in CPU_TARGETS.items():
        if name in result.processor:
            yield Row(f"{title}: CPU", f"x {name}", result.cpu(OURS.name) / result.cpu(name), most)


def _speeds(
    link: str, results: dict[str, tuple[Workload, Result]], clients: Sequence[Rival], rounds: int
) -> ClientTable:
    names = [client.name for client in clients]
    return ClientTable(
        f"clients {link}",
        f"{link}: speed as a multiple of the sftp command's, {CIPHER}, median of {rounds} rounds",
        [*names, SECONDS],
        {
            title.removesuffix(f", {link}"): [
                *(result.ratio(name) if name in result.seconds else None for name in names),
                result.median(SFTP.name),
            ]
            for title, (_, result) in results.items()
        },
    )


def _cpu_table(results: dict[str, Result], clients: Sequence[Rival], size: int) -> ClientTable:
    names = [client.name for client in clients if client.up or client.down]
    return ClientTable(
        "cpu",
        "loopback: seconds of CPU of the client per GiB",
        names,
        {
            title.split(",")[0]: [
                result.cpu(name) * 1024 / size if name in result.processor else None for name in names
            ]
            for title, result in results.items()
        },
    )
