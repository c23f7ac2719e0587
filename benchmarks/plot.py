"""The ratios as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .clients import SECONDS
from .rivals import OURS, SFTP
from .targets import ClientTable


def draw(tables: Sequence[ClientTable], target: Path) -> None:
    """Draw a panel for each link with a bar for each client.

    Bars are grouped by workload. The sftp command has the value 1.

    :param tables: the speeds of the clients on each link
    :param target: the file
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(tables), figsize=(6.4 * len(tables), 4.6), squeeze=False)
    for panel, table in zip(panels[0], tables, strict=True):
        clients = [name for name in table.columns if name not in (SFTP.name, SECONDS)]
        height = 0.8 / len(clients)
        for at, client in enumerate(clients):
            ratios = [results[table.columns.index(client)] for results in table.rows.values()]
            able = [(row, ratio) for row, ratio in enumerate(ratios) if ratio is not None]
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
        panel.set_yticks([row + 0.4 - height / 2 for row in range(len(table.rows))], list(table.rows))
        panel.invert_yaxis()
        panel.set_title(table.title.split(",")[0])
        panel.xaxis.set_major_formatter("{x:g}")
    panels[0][0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(target, dpi=110)
