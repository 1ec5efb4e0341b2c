"""A report as one page that needs neither network nor scripts, and prints well."""

import base64
import html
import io
import json
from typing import Any

from matplotlib.figure import Figure

from cujax.reports.summary import PREVIOUS, audit_table, columns, figure_in_words, not_computed, share_in_words, summary


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def picture(title: str, explanation: str, figure: Figure) -> str:
    """A figure as part of a page, with a heading and a sentence."""
    return _picture(title, explanation, png(figure))


def _picture(title: str, explanation: str, png: bytes) -> str:
    return (
        f'<h2>{html.escape(title)}</h2><p>{html.escape(explanation)}</p><img alt="{html.escape(title)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } tr.unlearned { background: #fff3ea; font-weight: 600; }
td small { color: #555; font-weight: 400; } .audit td:first-child { max-width: 22rem; } tr.family td { font-weight: 600;
background: #eee; } tr.above td:last-child, tr.below td:last-child { background: #fff3ea; font-weight: 600; }
thead th { vertical-align: bottom; cursor: help; } img { max-width: 100%; }
.summary { font-size: 1.05rem; border-left: 4px solid #D55E00; padding-left: 1rem; }
.caveat, .note { color: #555; font-size: .9rem; } pre { overflow-x: auto; background: #f6f6f6; padding: .8rem; }
.scroll { overflow-x: auto; } @media print { body { margin: 0; } h2 { break-after: avoid; } img { break-inside: avoid; } }
"""


def html_page(report: dict[str, Any], figures: dict[str, tuple[str, bytes]]) -> str:
    """The report as one self-contained page: no network, no scripts."""
    escape = html.escape
    shown = columns(report)
    head = "".join(f'<th title="{escape(question)}">{escape(heading)}</th>' for _, heading, question in shown)
    body = ""
    for name, row in report["rows"].items():
        cells = "".join(
            f'<td title="{escape(row["reasons"].get(key, ""))}">{escape(figure_in_words(row, key))}</td>'
            for key, _, _ in shown
        )
        seconds = report["cost"][name]["seconds"]
        cells += f"<td>{'–' if seconds is None else f'{seconds:.1f}'}</td>"
        body += f'<tr class="{escape(name)}"><td>{escape(name)}</td>{cells}</tr>'
    questions = "".join(f"<li><b>{escape(heading)}</b>: {escape(question)}</li>" for _, heading, question in shown)
    absent = "".join(
        f"<li>{escape(name)}, {escape(key)}: {escape(reason)}</li>"
        for name, row in report["rows"].items()
        for key, reason in row["reasons"].items()
    )
    pictures = "".join(_picture(title, *figure) for title, figure in figures.items())
    split = report["split"]
    parts = ", ".join(f"{name} {split[name]}" for name in ("forget", "retain", "validation", "test"))
    details = json.dumps({key: report[key] for key in ("config", "versions", "split", "cost", "seed")}, indent=2)
    several = report["retrained_models"] > 1
    earlier = "".join(
        f"<tr><td>{escape(request['request'])}</td><td>{request['n']}</td>"
        + "".join(f"<td>{share_in_words(request[name])}</td>" for name, _ in PREVIOUS)
        + "</tr>"
        for request in report["previous_requests"]
    )
    heads = "".join(f"<th>{name}</th>" for name, _ in PREVIOUS)
    earlier_table = (
        "<h2>Earlier requests</h2><p>Accuracy on the training samples that earlier requests had forgotten.</p>"
        f"<table><thead><tr><th>request</th><th>samples</th>{heads}</tr></thead><tbody>{earlier}</tbody></table>"
    )
    audit = ""
    if report["audit"] is not None:
        audit = f"<h2>Every figure, and where retrained models have it</h2>{audit_table(report['audit'])}"
        absent += "".join(f"<li>{escape(line)}</li>" for line in not_computed(report["audit"]))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Unlearning report: {escape(report["source"]["name"])}</title><style>{STYLE}</style></head><body>
<h1>Unlearning report: {escape(report["source"]["name"])}, {escape(report["request"])}</h1>
<p class="summary">{"<br>".join(map(escape, summary(report).splitlines()))}</p>
<p class="caveat">{escape(report["caveat"])}</p>
<div class="scroll"><table><thead><tr><th></th>{head}<th>seconds</th></tr></thead><tbody>{body}</tbody></table></div>
<p class="note">All figures are fractions. The aim is not the best figure but the retrained model's
({report["retrained_models"]} of them{", mean ± standard deviation" if several else ""}). Samples: {escape(parts)}.</p>
{audit}
{earlier_table * bool(earlier)}
{pictures}
<h2>What the columns ask</h2><ul>{questions}</ul>
{f"<h2>What could not be computed, and why</h2><ul>{absent}</ul>" if absent else ""}
<h2>Lineage</h2><pre>{escape(chr(10).join(report["lineage"]))}</pre>
<h2>Details</h2><details><summary>Configuration, versions, cost</summary><pre>{escape(details)}</pre></details>
</body></html>
"""
