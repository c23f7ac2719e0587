"""The ratios as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .rivals import OURS, SFTP
from .workloads import Result


def draw(results: Mapping[str, Sequence[Result]], size: int, target: Path) -> None:
    """Draw a panel for each link with a bar for each client.

    Bars are grouped by workload. The sftp command has the value 1.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(results), figsize=(6.4 * len(results), 4.6), squeeze=False)
    for panel, (link, found) in zip(panels[0], results.items(), strict=True):
        shown = [result for result in found if result.target is not None]
        clients = list(dict.fromkeys(name for result in shown for name in result.seconds if name != SFTP.name))
        height = 0.8 / len(clients)
        for at, client in enumerate(clients):
            able = [(row, result.ratio(client)) for row, result in enumerate(shown) if client in result.seconds]
            panel.barh(
                [row + at * height for row, _ in able],
                [ratio for _, ratio in able],
                height,
                label=client,
                color="#d1495b" if client == OURS.name else f"C{at + 6}",
                alpha=1.0 if client == OURS.name else 0.55,
            )
        panel.set_xscale("log")
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_yticks(
            [row + 0.4 - height / 2 for row in range(len(shown))],
            [result.workload.title.format(size=size) for result in shown],
        )
        panel.invert_yaxis()
        panel.set_title(f"{link}: times as fast as the sftp command")
        panel.xaxis.set_major_formatter("{x:g}")
    panels[0][0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(target, dpi=110)
