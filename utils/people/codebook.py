"""What the cells of a table of people mean: units of ages, codes of sexes, words for the unknown.

A header may say it (`age_months`, `sex (1=m, 2=f)`), or the data dictionary of BIDS, a .json file
beside a .tsv file with the `Units` and `Levels` of its columns (BIDS 1.10, "Tabular files").
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

FEMALE, MALE = 0, 1
SEX_NAMES = {FEMALE: "F", MALE: "M", None: "n/a"}
WORDS_OF_SEX = {
    **dict.fromkeys(("f", "female", "woman", "girl", "w", "weiblich"), FEMALE),
    **dict.fromkeys(("m", "male", "man", "boy", "männlich"), MALE),
}
SEX_WORDS = {"0": FEMALE, "0.0": FEMALE, "1": MALE, "1.0": MALE, **WORDS_OF_SEX}
UNKNOWN_WORDS = ("", "n/a", "na", "nan", "none", "null", "unknown", "?", "-")
OTHER_SEX = ("o", "other")  # of BIDS

DAYS_PER_YEAR = 365.25
YEARS_PER_UNIT = {
    **dict.fromkeys(("", "y", "yr", "yrs", "year", "years", "a"), 1.0),
    **dict.fromkeys(("mo", "mos", "mth", "mths", "month", "months"), 1 / 12),
    **dict.fromkeys(("w", "wk", "wks", "week", "weeks"), 7 / DAYS_PER_YEAR),
    **dict.fromkeys(("d", "day", "days"), 1 / DAYS_PER_YEAR),
}
OLDEST_AGE = 120
# 45, 45.5, 45,5; with a unit behind it as DICOM writes ages (045Y, 018M).
AGE = re.compile(r"([+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:e[+-]?\d+)?)\s*([a-z]*)")
# 89+ and >89 hide the ages of the very old.
MASKED_AGE = re.compile(r"\d+(?:\.\d+)?\s*\+|(?:>=?|≥)\s*\d+(?:\.\d+)?")


def parse_age(text: str, years_per_unit: float = 1.0) -> float | None:
    """Years; None where unknown, 89+ included.

    Args:
        text: a number of the column's unit, or one with its own unit, such as `018M` or `45 years`.
        years_per_unit: of the column.

    Raises:
        ValueError: the expectation.
    """
    word = text.lower()
    if word in UNKNOWN_WORDS or MASKED_AGE.fullmatch(word):
        return None
    found = AGE.fullmatch(word)
    unit = "months" if found and found[2] == "m" else found and found[2]
    if not found or unit not in YEARS_PER_UNIT:
        raise ValueError("expected years as a number")
    years = float(found[1].replace(",", "."))
    years *= YEARS_PER_UNIT[unit] if unit else years_per_unit
    if not 0 <= years <= OLDEST_AGE or math.isnan(years):
        raise ValueError(f"expected years from 0 to {OLDEST_AGE} (months? days?)")
    return years


def parse_sex(text: str, codes: Mapping[str, int | None]) -> int | None:
    """0 female, 1 male, None where unknown; ValueError with the expectation.

    `codes` are those of the column, in lower case.
    """
    word = text.lower()
    if word in codes:
        return codes[word]
    if word.removesuffix(".0") in codes:
        return codes[word.removesuffix(".0")]
    if word in (*UNKNOWN_WORDS, *OTHER_SEX):
        return None
    raise ValueError(f"expected one of {', '.join(codes)}")


def parse_sex_codes(pairs: list[str] | None) -> dict[str, int] | None:
    """{"1": 1, "2": 0} from ["1=male", "2=female"], the form of `--sex_codes`; None from None."""
    if not pairs:
        return None
    codes = {}
    for pair in pairs:
        code, _, word = pair.partition("=")
        if not code or word.lower() not in SEX_WORDS:
            raise ValueError(f"--sex_codes {pair!r}: CODE=male or CODE=female expected")
        codes[code.strip().lower()] = SEX_WORDS[word.lower()]
    return codes


def codes_in_header(header: str) -> dict[str, int | None]:
    """The codes that a header states, `SEX_ID (1=m, 2=f)` or `is_male`; empty where none."""
    text = header.lower().strip()
    if only := re.fullmatch(r"(?:is)?[\W_]*((?:fe)?male)", text):
        sex = WORDS_OF_SEX[only[1]]
        return {**dict.fromkeys(("1", "true", "yes"), sex), "0": 1 - sex, "false": 1 - sex}
    pairs = re.findall(r"(\d+)\s*[=:]\s*([^\W\d_]+)", text)
    pairs += [(code, word) for word, code in re.findall(r"([^\W\d_]+)\s*[=:]\s*(\d+)", text)]
    codes: dict[str, int | None] = {}
    for code, word in pairs:
        if word in WORDS_OF_SEX:
            codes.setdefault(code, WORDS_OF_SEX[word])
    return codes


def unit_in_header(header: str) -> float | None:
    """Years per unit, of a header such as `age_months` or `Age (y)`; None where it names none."""
    words = re.findall(r"[a-z]+", header.lower())
    return YEARS_PER_UNIT.get(words[-1]) if words else None


class DataDictionary:
    """The .json file beside a .tsv file, which describes its columns; empty where there is none.

    Attributes:
        path: of the file; None where there is none.
    """

    def __init__(self, table: Path):
        """Looks for it beside `table`, and for BIDS one level up to the dataset as well.

        Raises:
            ValueError: the file is not readable as JSON.
        """
        self.path = next((path for path in _dictionary_places(table) if path.is_file()), None)
        self._columns: dict[str, dict] = {}
        if self.path is None:
            return
        try:
            content = _read_json(self.path)
            if not isinstance(content, dict):
                raise ValueError("an object expected")
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{self.path}: not readable as JSON ({error}), so the units of ages and the codes "
                f"of sexes in {table.name} are not known; mend it or remove it"
            ) from error
        self._columns = {
            name.strip().lower(): value
            for name, value in content.items()
            if isinstance(value, dict)
        }

    def years_per_unit(self, column: str) -> float | None:
        """Of a column of ages; None where it is not stated.

        Raises:
            ValueError: a unit that is none of age.
        """
        described = self._columns.get(column.strip().lower(), {})
        stated = described.get("Units", described.get("units", ""))
        unit = str(stated or "").strip().lower()
        if not unit:
            # Some say it in the description alone.
            text = str(described.get("Description", described.get("description", ""))).lower()
            units = set(re.findall(r"\b(?:in|of) (year|month|week|day)s\b", text))
            if len(units) != 1:
                return None
            (unit,) = units
        if unit in UNKNOWN_WORDS:
            return None
        if unit not in YEARS_PER_UNIT:
            raise ValueError(
                f"{self.path}: {column} has the unit {stated!r}; years, months, weeks or days "
                "expected, so its ages are unknown"
            )
        return YEARS_PER_UNIT[unit]

    def codes_of_sex(self, column: str) -> dict[str, int | None]:
        """What the `Levels` of a column of sexes say, by code in lower case; empty without."""
        described = self._columns.get(column.strip().lower(), {})
        levels = described.get("Levels", described.get("levels"))
        if not isinstance(levels, dict):
            return {}
        codes = {}
        for code, meaning in levels.items():
            if isinstance(meaning, dict):  # of BIDS 1.9 and later
                meaning = meaning.get("Description", "")
            sex, key = _sex_in_words(str(meaning)), str(code).strip().lower()
            if sex is None and key in WORDS_OF_SEX and str(meaning).strip():
                sex, key = WORDS_OF_SEX[key], str(meaning).strip().lower()  # {"male": "1"}
            codes[key] = WORDS_OF_SEX.get(key, sex)
        return codes


def _read_json(path: Path) -> object:
    """JSON as people write it: in Latin-1 too, and with a comma behind the last value."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    try:
        return json.loads(text)
    except ValueError:
        return json.loads(re.sub(r",(\s*[}\]])", r"\1", text))


def _dictionary_places(table: Path) -> list[Path]:
    """participants.json beside participants.tsv; sessions.json up to three folders higher."""
    if table.suffix.lower() != ".tsv":
        return []
    kind = table.stem.rpartition("_")[2]
    places = [table.with_suffix(".json")]
    if kind in ("sessions", "scans"):
        places += [folder / f"{kind}.json" for folder in table.absolute().parents[:3]]
    return places


def _sex_in_words(text: str) -> int | None:
    """The sex that the description of a level names; None where it names none or both."""
    words = re.findall(r"\w+", text.lower())
    found = {WORDS_OF_SEX[word] for word in words if word in WORDS_OF_SEX}
    return found.pop() if len(found) == 1 else None
