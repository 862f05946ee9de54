"""One HTML file about predicted ages that needs nothing beside it: figures, table, every scan.

What it shows is for research. The page may load nothing: its Content-Security-Policy allows
pictures that are inside it and the one script whose SHA-256 it names.
"""

import base64
import hashlib
import html
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from analysis.brain_pad.calibration import Calibration
from analysis.report.figures import Picture, error_pictures, histogram_of_ages
from analysis.report.numbers import (
    MINIMUM,
    STATES,
    Line,
    covered,
    group_errors,
    stage_difference,
    summarise,
    table_of,
    with_errors,
)
from utils.files import replacing
from utils.results.pages import picture_element
from utils.results.tables import format_difference, format_figure

FULL_PICTURES = 200  # the page shows the others at half size: thousands must still open
FEWEST_DRAWN = 3  # scans; a figure of fewer says less than the table
MARKS = {"failed": "✕", "flagged": "▲", "ok": "●"}  # nothing is said by colour alone
STYLE = Path(__file__).with_name("report.css")
SCRIPT = Path(__file__).with_name("report.js")
NOTICE = (
    "Predicted ages are for research. They are no diagnosis and no ground for a decision about a "
    "person."
)
ASSUMPTION = (
    " The 90 % intervals assume people, scanners and preprocessing like those of the calibration "
    "cohort; for others they promise nothing."
)
FLATTERS = (
    "Beheshti's correction uses the chronological age: whatever is computed from it flatters, so "
    "its errors are not listed. Cole's correction uses none."
)
FIGURES = {
    "mae": "MAE (years)",
    "rmse": "RMSE (years)",
    "pearson": "r",
    "mean_brain_pad": "Mean PAD (years)",
    "brain_pad_age_correlation": "r of PAD with age",
}
OF_GROUPS = ("mae", "mean_brain_pad")
# Column of the table -> heading, and how years are written; None: text.
COLUMNS = {
    "session_id": ("Session", None),
    "state": ("Quality", None),
    "sex": ("Sex", None),
    "site": ("Site", None),
    "age": ("Age", "{:.1f}"),
    "stage_one_age": ("Stage one", "{:.1f}"),
    "predicted_age": ("Predicted age", "{:.1f}"),
    "predicted_age_low": ("90 % from", "{:.1f}"),
    "predicted_age_high": ("90 % to", "{:.1f}"),
    "brain_pad": ("PAD", "{:+.1f}"),
    "predicted_age_cole": ("Predicted, Cole", "{:.1f}"),
    "brain_pad_cole": ("PAD, Cole", "{:+.1f}"),
    "brain_pad_beheshti": ("PAD, Beheshti", "{:+.1f}"),
    "message": ("Message", None),
    "model": ("Model", None),
    "scan": ("File", None),
}
CLASSES = {"message": "long", "model": "long", "scan": "path"}  # how text may break
UNKNOWN = "n/a"


def write_report(
    rows: Sequence[Mapping],
    path: str | Path,
    *,
    title: str,
    pictures: Mapping[str, str | Path],
    calibration: Calibration | None = None,
    card: str | None = None,
    command: str = "",
    versions: Mapping[str, str] | None = None,
    overlays: Mapping[str, str | Path] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the report; the same arguments make the same bytes.

    Failed scans stand first, then flagged ones, then the others, each group by the size of its
    brain-PAD, largest first. One picture of a scan is in memory at a time, and those after the
    first `FULL_PICTURES` are halved. Text from outside is escaped.

    Args:
        rows: one mapping a scan, in the order of the table, with the keys participant_id,
            session_id, scan (path as text, unique), sex (`F`, `M` or `n/a`), age, site (may lack),
            stage_one_age, predicted_age, predicted_age_low and predicted_age_high (90 %),
            brain_pad, predicted_age_cole, brain_pad_cole, brain_pad_beheshti, qc_flag (`ok`, or
            codes joined by commas), status (`ok` or `failed`), message and model. Ages and
            brain-PADs are years; None where unknown.
        path: of the page.
        title: its heading.
        pictures: scan -> PNG of its mosaic; may lack some.
        calibration: what intervals and corrections come from.
        card: of the networks, as text; shown as it is.
        command: that made the predictions.
        versions: of programs and whatever else identifies the run, by name.
        overlays: scan -> PNG of its saliency.
        overwrite: whether `path` may exist already.

    Raises:
        ValueError: rows that are none, incomplete, double or contradictory, see `table_of`.
        FileExistsError: `path` exists and `overwrite` is false.
    """
    table = table_of(rows)
    known = with_errors(table)
    groups = group_errors(known) if len(known) else []
    # Bytes of a file name that are no text cannot be written as UTF-8.
    with (
        replacing(path, overwrite=overwrite) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(_head(table, title=title))
        file.write(_summary(table, known))
        for picture in _figures(table, known, groups):
            file.write(picture)
        file.write(_groups(groups))
        file.writelines(_table(table))
        file.writelines(_scans(table, pictures, overlays or {}))
        if calibration is not None:
            file.write(_calibration(calibration, known))
        file.write(_origin(table, card, command, versions or {}))
        file.write(f"</main>\n<script>{_script()}</script>\n</body>\n</html>\n")


def _script() -> str:
    return SCRIPT.read_text(encoding="utf-8")


def _head(table: pd.DataFrame, *, title: str) -> str:
    """Everything before the first section: rules for the browser, style, counts with links."""
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    counts = Counter(table["state"])
    first = {row.state: row.Index for row in reversed(list(_worst_first(table).itertuples()))}
    links = "\n".join(
        f'<a class="state {state}" href="#scan-{first[state]}">'
        f"{MARKS[state]} {counts[state]} {state}</a>"
        for state in STATES
        if state in first
    )
    escaped = html.escape(title)
    notice = NOTICE + (ASSUMPTION if table["predicted_age_low"].notna().any() else "")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escaped}</title>
<style>{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<h1>{escaped}</h1>
<nav aria-label="Sections">
{links}
<a href="#summary">Summary</a> <a href="#table">Table</a> <a href="#scans">Scans</a>
<a href="#origin">Origin</a>
</nav>
<p class="notice">{notice}</p>
</header>
<main>
"""


def _summary(table: pd.DataFrame, known: pd.DataFrame) -> str:
    """The counts, the main figures with their intervals, and both stages side by side."""
    counts = Counter(table["state"])
    tiles = [("Scans", str(len(table)), ""), ("Failed", str(counts["failed"]), "no age predicted")]
    tiles.append(("Flagged", str(counts["flagged"]), "predicted, but look at them"))
    lines, notes = summarise(known), []
    main = next((line for line in lines if line.title in ("Stage two", "Predicted")), None)
    if main is not None:
        tiles.append(("Predicted, with an age", str(main.scans), "errors are of these"))
        tiles += [
            _tile("Mean absolute error", main.figures["mae"], "{:.2f}", "years"),
            _tile("Correlation r", main.figures["pearson"], "{:.3f}"),
            _tile("Mean brain-PAD", main.figures["mean_brain_pad"], "{:+.2f}", "years"),
        ]
        notes.append(
            "Brain-PAD is predicted minus chronological age. Brackets: 95 % bootstrap intervals "
            "over scans, flagged ones included unless a line says otherwise; below "
            f"{MINIMUM} scans neither intervals nor correlations are given."
        )
        if known["brain_pad_beheshti"].notna().any():
            notes.append(FLATTERS)
    elif (table["state"] == "failed").all():
        notes.append("No scan could be predicted; the messages are in the table.")
    else:
        notes.append("No chronological ages are known, so there are no errors to report.")
    if (share := covered(known)) is not None:
        percents = {name: 100 * share[name] for name in ("value", "low", "high")}
        tiles.append(_tile("Ages inside their 90 % interval", percents, "{:.0f} %"))
    ages = table["predicted_age"].dropna()
    if len(ages) == 1:
        tiles.append(("Predicted age", f"{ages.iloc[0]:.1f}", "years"))
    elif len(ages):
        tiles.append(("Predicted ages", f"{ages.min():.1f} to {ages.max():.1f}", "years"))
    if (difference := stage_difference(known)) is not None:
        title = "MAE of stage two minus MAE of stage one"
        notes.insert(0, f"{format_difference(title, difference)}.")
    cells = "\n".join(
        f"<div><dt>{name}</dt><dd>{value} <small>{more}</small></dd></div>"
        for name, value, more in tiles
    )
    figures = _lines_table(lines, "Ages", tuple(FIGURES)) if lines else ""
    text = "\n".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return (
        f'<section id="summary">\n<h2>Summary</h2>\n<dl class="tiles">\n{cells}\n</dl>\n'
        f"{figures}{text}\n</section>\n"
    )


def _tile(name: str, figure: Mapping, form: str, unit: str = "") -> tuple[str, str, str]:
    """Name, value, and unit with interval, of a figure that may be unknown."""
    if figure["value"] is None:
        return name, "–", "too few scans"
    interval = ""
    if figure["low"] is not None:
        interval = f"[{form}, {form}] ".format(figure["low"], figure["high"])
    return name, form.format(figure["value"]), f"{interval}{unit}"


def _lines_table(lines: Sequence[Line], corner: str, names: Sequence[str]) -> str:
    """A table of figures with their intervals, inside a box that scrolls."""
    heads = "".join(f'<th scope="col" class="number">{FIGURES[name]}</th>' for name in names)
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(f"{line.kind} {line.title}".strip())}</th>'
        f'<td class="number">{line.scans}</td>'
        + "".join(f'<td class="number">{format_figure(line.figures[name])}</td>' for name in names)
        + "</tr>"
        for line in lines
    )
    return (
        f'<div class="box" role="region" tabindex="0" aria-label="Figures by {corner.lower()}">\n'
        f'<table>\n<thead><tr><th scope="col">{corner}</th><th scope="col" class="number">Scans'
        f"</th>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>\n"
    )


def _figures(table: pd.DataFrame, known: pd.DataFrame, groups: Sequence[Line]) -> Iterator[str]:
    """The section of figures, if there is anything to draw."""
    drawn: list[Picture] = error_pictures(known, groups) if len(known) >= FEWEST_DRAWN else []
    predicted = table[table["predicted_age"].notna()]
    if max(FEWEST_DRAWN, 2 * len(known) + 1) <= len(
        predicted
    ):  # otherwise the first figure says it
        drawn.append(histogram_of_ages(predicted))
    if not drawn:
        return
    yield (
        '<section id="figures">\n<h2>Figures</h2>\n<p>Blue circles are scans without a flag, '
        'orange triangles (or hatched bars) flagged ones.</p>\n<div class="figures">\n'
    )
    for picture in drawn:
        yield picture.element()
    yield "</div>\n</section>\n"


def _groups(groups: Sequence[Line]) -> str:
    if not groups:
        return ""
    body = _lines_table(groups, "Group", OF_GROUPS)
    return f'<section id="groups">\n<h2>Errors by age, sex and site</h2>\n{body}</section>\n'


def _table(table: pd.DataFrame) -> Iterator[str]:
    """All rows in the order given; columns where nothing is known are left out."""
    shown = [name for name in COLUMNS if name == "state" or _says_something(table, name)]
    heads = "".join(f'<th scope="col"{_class(name)}>{COLUMNS[name][0]}</th>' for name in shown)
    yield (
        '<section id="table">\n<h2>All scans</h2>\n<p>Years. A heading sorts when it is pressed. '
        "Names lead to the pictures.</p>\n"
        '<div class="box" role="region" tabindex="0" aria-label="All scans">\n'
        '<table class="sortable">\n'
        f'<thead><tr><th scope="col">Person</th>{heads}</tr></thead>\n<tbody>\n'
    )
    for row in table.itertuples():
        cells = "".join(_cell(row, name) for name in shown)
        name = f'<a href="#scan-{row.Index}">{html.escape(row.participant_id or row.scan)}</a>'
        yield f'<tr><th scope="row">{name}</th>{cells}</tr>\n'
    yield "</tbody>\n</table>\n</div>\n</section>\n"


def _says_something(table: pd.DataFrame, name: str) -> bool:
    """Whether a column is worth its place; one model for all is said at the end of the page."""
    if name == "model":
        return table["model"].replace("", pd.NA).nunique() > 1
    return bool(((table[name] != "") & table[name].notna()).any())


def _class(name: str) -> str:
    if COLUMNS[name][1] is not None:
        return ' class="number"'
    return f' class="{CLASSES[name]}"' if name in CLASSES else ""


def _cell(row, name: str) -> str:
    """One cell; numbers carry all their digits for sorting, unknown ones nothing."""
    value, form = getattr(row, name), COLUMNS[name][1]
    if name == "state":
        rank = STATES.index(row.state)
        return f'<td class="{row.state}" data-value="{rank}">{_state(row)}</td>'
    if form is None:
        return f"<td{_class(name)}>{html.escape(value)}</td>"
    if math.isnan(value):
        return f'<td class="number" data-value="">{UNKNOWN}</td>'
    return f'<td class="number" data-value="{value!r}">{form.format(value)}</td>'


def _state(row) -> str:
    """Mark and word, and the codes of a flagged scan."""
    flags = html.escape(row.qc_flag).replace(",", ", ") if row.state == "flagged" else ""
    return f'<b class="state">{MARKS[row.state]} {row.state}</b> {flags}'.rstrip()


def _name(row) -> str:
    """Person and session; without a person the scan."""
    return " ".join(filter(None, (row.participant_id, row.session_id))) or row.scan


def _worst_first(table: pd.DataFrame) -> pd.DataFrame:
    """Failed, flagged, ok, each by the size of the brain-PAD; unknown ones as they come."""
    keys = table.assign(_state=table["state"].map(STATES.index), _size=-table["brain_pad"].abs())
    return table.loc[keys.sort_values(["_state", "_size"], kind="stable").index]


def _scans(
    table: pd.DataFrame, pictures: Mapping[str, str | Path], overlays: Mapping[str, str | Path]
) -> Iterator[str]:
    """An article for every scan, with its pictures."""
    halved = ""
    count = sum(scan in found for scan in table["scan"] for found in (pictures, overlays))
    if count > FULL_PICTURES:
        halved = f" Pictures after the first {FULL_PICTURES} are at half size."
    yield (
        '<section id="scans">\n<h2>Scans</h2>\n<p>Failed first, then flagged, then the others; '
        f"among these, the largest brain-PAD first. Brackets: 90 % intervals."
        f'{halved}</p>\n<div class="scans">\n'
    )
    count = 0
    for row in _worst_first(table).itertuples():
        lines = [_facts(row)]
        lines += [f"<p>{html.escape(row.message)}</p>"] if row.message else []
        lines.append(f'<p class="faint">{html.escape(row.scan)}</p>')
        for found, words in (
            (pictures, "planes of {} with the template's outline"),
            (overlays, "saliency of {}"),
        ):
            if row.scan not in found:
                continue
            count += 1
            alt = words.format(_name(row))
            element = _picture(found[row.scan], alt=alt, halved=count > FULL_PICTURES)
            if found is overlays:
                element = f"<details><summary>What moved the age</summary>\n{element}</details>\n"
            lines.append(element)
        body = "\n".join(lines)
        yield (
            f'<article id="scan-{row.Index}" class="{row.state}">\n'
            f"<h3>{html.escape(_name(row))}</h3>\n{body}</article>\n"
        )
    yield "</div>\n</section>\n"


def _facts(row) -> str:
    """Flag, ages and brain-PADs of a scan in one line."""
    facts = [_state(row)]
    if not math.isnan(row.predicted_age):
        interval = ""
        if not math.isnan(row.predicted_age_low):
            interval = f" [{row.predicted_age_low:.1f}, {row.predicted_age_high:.1f}]"
        facts.append(f"predicted {row.predicted_age:.1f}{interval}")
    facts += [f"age {row.age:.1f}"] if not math.isnan(row.age) else []
    facts += [f"PAD {row.brain_pad:+.1f}"] if not math.isnan(row.brain_pad) else []
    facts += [f"Cole {row.brain_pad_cole:+.1f}"] if not math.isnan(row.brain_pad_cole) else []
    facts += [html.escape(text) for text in (row.sex, row.site) if text not in ("", UNKNOWN)]
    return f"<p>{' &middot; '.join(facts)}</p>"


def _picture(path: str | Path, *, alt: str, halved: bool) -> str:
    try:
        return picture_element(path, alt=alt, halved=halved)
    # The second is what Pillow raises for a broken PNG.
    except (OSError, SyntaxError) as error:
        return f"<p>Its picture cannot be shown: {html.escape(str(error))}</p>\n"


def _calibration(calibration: Calibration, known: pd.DataFrame) -> str:
    """What intervals and corrections rest on, and whether these scans are inside it."""
    bias, source = calibration.bias, calibration.source
    low, high = bias.age_range
    outside = int(bias.outside(known["age"].to_numpy()).sum()) if len(known) else 0
    intercept = f"{'+' if bias.intercept >= 0 else '-'} {abs(bias.intercept):.2f}"
    widths = " / ".join(f"{years:.1f}" for years in calibration.limits.years[90])
    facts = {
        "Fitted on": f"{source['scans']} scans of {source['file']}, each predicted by networks "
        "not trained on it",
        "SHA-256": source["sha256"],
        "Ages": f"{low:.1f} to {high:.1f} years; {outside} of {len(known)} scans with an age here "
        "are outside, where the correction extrapolates",
        "Line": f"predicted = {bias.slope:.3f} × age {intercept} years",
        "90 % interval": f"predicted age ± {widths} years",
    }
    return f'<section id="calibration">\n<h2>Calibration</h2>\n{_fact_list(facts)}</section>\n'


def _origin(
    table: pd.DataFrame, card: str | None, command: str, versions: Mapping[str, str]
) -> str:
    """Command, models, versions and the card."""
    models = Counter(model for model in table["model"] if model)
    facts = {"Command": command} if command else {}
    if models:
        facts["Model"] = "; ".join(f"{model} ({count} scans)" for model, count in models.items())
    facts |= versions
    body = _fact_list(facts, code=("Command",)) if facts else "<p>Nothing was said.</p>\n"
    if card:
        body += (
            "<details>\n<summary>Model card</summary>\n"
            f"<pre>{html.escape(card.strip())}</pre>\n</details>\n"
        )
    return f'<section id="origin">\n<h2>How this was made</h2>\n{body}</section>\n'


def _fact_list(facts: Mapping[str, object], *, code: Sequence[str] = ()) -> str:
    """Names and texts; those named in `code` in the letters of a terminal."""
    cells = []
    for name, text in facts.items():
        escaped = html.escape(str(text))
        shown = f"<code>{escaped}</code>" if name in code else escaped
        cells.append(f"<dt>{html.escape(str(name))}</dt><dd>{shown}</dd>")
    return '<dl class="facts">\n' + "\n".join(cells) + "\n</dl>\n"
