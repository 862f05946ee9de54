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
    **dict.fromkeys(("f", "female", "woman", "girl", "w", "weiblich", "femme", "mujer"), FEMALE),
    **dict.fromkeys(("m", "male", "man", "boy", "männlich", "homme", "hombre"), MALE),
}
SEX_WORDS = {"0": FEMALE, "0.0": FEMALE, "1": MALE, "1.0": MALE, **WORDS_OF_SEX}
UNKNOWN_WORDS = ("", "n/a", "na", "nan", "none", "null", "unknown", "?", "-")
OTHER_SEX = ("o", "other")  # of BIDS

DAYS_PER_YEAR = 365.25
YEARS_PER_UNIT = {
    **dict.fromkeys(("", "y", "yr", "yrs", "year", "years", "a", "yo"), 1.0),
    **dict.fromkeys(("mo", "mos", "mth", "mths", "month", "months"), 1 / 12),
    **dict.fromkeys(("w", "wk", "wks", "week", "weeks"), 7 / DAYS_PER_YEAR),
    **dict.fromkeys(("d", "day", "days"), 1 / DAYS_PER_YEAR),
}
WITH_UNITS = {
    "age",
    "old",
    "of",
    "at",
    "in",
    "the",
    "s",
    "scan",
    "decimal",
    "completed",
    "full",
    "rounded",
}  # fmt: skip  words that a unit may stand among, and still be it
PROSE_UNIT = re.compile(
    r"(?:\b(?:in|of) (?:(?:full|whole|completed|decimal) )?|[(\[]|^|, )(year|month|week|day)s\b"
)
BEFORE_BIRTH = re.compile(r"gestation|menstrual|conception")
OLDEST_AGE = 120
MISSING_CODE = re.compile(r"([789])\1{2,}")  # 999, of SPSS and its like
MISSING = re.compile(r"missing|unknown|not |no data|n/a|\bna\b|refuse|null")
# 45, 45.5, 45,5; with a unit behind it as DICOM writes ages (045Y, 018M).
AGE = re.compile(r"([+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:e[+-]?\d+)?)\s*([a-z]*)")
THOUSANDS = re.compile(r"\d{1,3}[.,]\d{3}")  # 12,345 days: 34 years, or 12 days
SEXED_AGE = re.compile(r"(?!\d{3}M)\S+M")  # 45M: a man of 45 years, no child of 45 months
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
    if not found or unit not in YEARS_PER_UNIT or SEXED_AGE.fullmatch(text):
        raise ValueError("expected years as a number")
    if found[1] == "999" and not unit and years_per_unit == YEARS_PER_UNIT["months"]:
        raise ValueError("a code for the unknown? expected the age or n/a")
    if THOUSANDS.fullmatch(found[1]) and not unit and years_per_unit < 1:
        raise ValueError("expected a number without a mark of thousands or with fewer decimals")
    years = float(found[1].replace(",", "."))
    years *= YEARS_PER_UNIT[unit] if unit else years_per_unit
    if not 0 <= years <= OLDEST_AGE or math.isnan(years):
        raise ValueError(f"expected years from 0 to {OLDEST_AGE} (months? days?)")
    return years


def is_beyond_years(text: str) -> bool:
    """Whether a cell is a number without a unit that no age in years is, nor a code like 999."""
    found = AGE.fullmatch(text.lower())
    if not found or found[2] or MISSING_CODE.fullmatch(text):
        return False
    return float(found[1].replace(",", ".")) > OLDEST_AGE


def parse_sex(text: str, codes: Mapping[str, int | None]) -> int | None:
    """0 female, 1 male, None where unknown; ValueError with the expectation.

    `codes` are those of the column, in lower case.
    """
    word = text.lower()
    if word in codes:
        return codes[word]
    if whole_number(word) in codes:
        return codes[whole_number(word)]
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


def whole_number(text: str) -> str:
    """`1` of `1.0` and `1.00`, as pandas and SPSS write it; other texts as they are."""
    found = re.fullmatch(r"(\d+)[.,]0+", text)
    return found[1] if found else text


def codes_in_header(header: str) -> dict[str, int | None]:
    """The codes that a header states, `SEX_ID (1=m, 2=f)` or `is_male`; empty where none.

    None for codes of which it is not clear: whether 0 or 1 is m in `gender_m_f`.
    """
    sexes, numbers = _sexes_and_numbers(header)
    if len(sexes) == 1 and not numbers:
        sex = WORDS_OF_SEX[sexes[0]]
        return {**dict.fromkeys(("1", "true", "yes"), sex), "0": 1 - sex, "false": 1 - sex}
    if sexes and not numbers:
        return dict.fromkeys("012")
    return codes_in_text(header)


def codes_in_text(text: str) -> dict[str, int | None]:
    """The codes that a text states, `1 = male, 2: female` or `0 m 1 f`; empty where none.

    None for the numbers in a text that names sexes too, where it is not clear which is which.
    """
    text = text.lower()
    sexes, numbers = _sexes_and_numbers(text)
    if not sexes or not numbers:
        return {}
    pairs = re.findall(r"(\d+)\s*[=:]\s*([^\W\d_]+)", text)
    pairs += [(code, word) for word, code in re.findall(r"([^\W\d_]+)\s*[=:]\s*(\d+)", text)]
    pairs = [(code, word) for code, word in pairs if word in WORDS_OF_SEX]
    if not pairs and len(sexes) == len(numbers):
        pairs = list(zip(numbers, sexes, strict=True))  # they must take turns
        marks = [mark for mark in _marks(text) if mark in sexes or mark in numbers]
        if len({mark in numbers for mark in marks[::2]}) > 1 or len(set(numbers)) < len(numbers):
            pairs = []
    codes: dict[str, int | None] = {}
    for code, word in pairs:
        codes.setdefault(code, WORDS_OF_SEX[word])
    return codes or dict.fromkeys({*numbers, *"012"})


def _marks(text: str) -> list[str]:
    return re.findall(r"\d+|[^\W\d_]+", text.lower())


def _sexes_and_numbers(text: str) -> tuple[list[str], list[str]]:
    """The words for sexes and the numbers in a text."""
    marks = _marks(text)
    return [m for m in marks if m in WORDS_OF_SEX], [m for m in marks if m.isdigit()]


def _unit_in(text: str) -> float | None:
    """Years per unit, of a text that is a unit and nothing else but harmless words: `years old`."""
    if text in YEARS_PER_UNIT:
        return YEARS_PER_UNIT[text]
    words = [word for word in re.findall(r"[^\W\d_]+", text) if word not in WITH_UNITS]
    return YEARS_PER_UNIT.get(words[0]) if len(words) == 1 else None


def unit_in_header(header: str) -> float | None:
    """Years per unit, of a header such as `age_months` or `Age (y)`; None where it names none."""
    words = re.findall(r"[a-z]+", header.lower())
    return YEARS_PER_UNIT.get(words[-1]) if words else None


class DataDictionary:
    """The .json files that describe the columns of a .tsv file; empty where there are none.

    Attributes:
        path: of the nearest; None where there is none.
    """

    def __init__(self, table: Path):
        """Looks for them beside `table`, and for BIDS up to the dataset as well.

        What the nearest file says of a column counts. participants.json describes ages and sexes
        of sessions.tsv and scans.tsv too, where nothing nearer does.

        Raises:
            ValueError: a file is not readable as JSON.
        """
        self._columns: dict[str, dict] = {}
        paths = [path for path in _dictionary_places(table) if path.is_file()]
        self.path = paths[0] if paths else None
        for path in paths:
            try:
                content = _read_json(path)
                if not isinstance(content, dict):
                    raise ValueError("an object expected")
            except (ValueError, OSError) as error:
                raise ValueError(
                    f"{path}: not readable as JSON ({error}), so the units of ages and the codes "
                    f"of sexes in {table.name} are not known; mend it or remove it"
                ) from error
            for name, value in content.items():
                if isinstance(value, dict):
                    self._columns.setdefault(name.strip().lower(), {"path": path} | value)

    def describes(self, column: str) -> dict:
        """What is said of a column, with the `path` of the file; empty where nothing is."""
        return self._columns.get(column.strip().lower(), {})

    def years_per_unit(self, column: str) -> float | None:
        """Of a column of ages; None where it is not stated.

        Raises:
            ValueError: a unit that is none of age, or a description with a unit that is unclear.
        """
        described = self.describes(column)
        texts = [str(described.get(name, "")).lower() for name in ("LongName", "Description",
                 "description")]  # fmt: skip
        if BEFORE_BIRTH.search(" ".join(texts)):
            raise ValueError(
                f"{described['path']}: {column} is no age since birth, so its ages are unknown"
            )
        stated = described.get("Units", described.get("units", ""))
        unit = str(stated or "").strip().lower()
        if unit and unit not in UNKNOWN_WORDS:
            if (years := _unit_in(unit)) is None:
                raise ValueError(
                    f"{described['path']}: {column} has the unit {stated!r}; years, months, weeks "
                    "or days expected, so its ages are unknown"
                )
            return years
        # Some say it in words alone.
        units = {unit for text in texts for unit in PROSE_UNIT.findall(text)}
        named = set(re.findall(r"\b(year|month|week|day)s\b", " ".join(texts)))
        if "year" in units or not named - {"year"}:
            return None
        if len(units) != 1:
            raise ValueError(
                f"{described['path']}: {column} has no Units, and its description may mean years "
                f"or {' or '.join(sorted(named - {'year'}))}s, so its ages are unknown; add Units"
            )
        return YEARS_PER_UNIT[units.pop()]

    def missing_codes(self, column: str) -> set[str]:
        """The levels of a column that stand for an unknown value, such as 99 of an age."""
        levels = _levels(self.describes(column))
        levels = levels.items() if isinstance(levels, dict) else ()
        return {str(code).strip() for code, text in levels if MISSING.search(_meaning(text))}

    def codes_of_sex(self, column: str) -> dict[str, int | None]:
        """What the `Levels` of a column of sexes say, by code in lower case; empty without.

        Without levels, what its description says. None for codes of which it is not clear.
        """
        described = self.describes(column)
        levels = _levels(described)
        if not isinstance(levels, dict):
            if isinstance(levels, list) and _sexes_and_numbers(str(levels))[0]:
                return codes_in_text(str(levels)) or dict.fromkeys("012")
            text = described.get("Description", described.get("description", ""))
            return codes_in_text(str(levels or text))
        codes = {}
        for code, level in levels.items():
            meaning, key = _meaning(level), str(code).strip().lower()
            sex = _sex_in_words(meaning)
            if sex is None and key in WORDS_OF_SEX and meaning.isdigit():  # {"male": "1"}
                sex, key = WORDS_OF_SEX[key], meaning
            codes[key] = WORDS_OF_SEX.get(key) if sex is None else sex
        return codes


def _levels(described: dict) -> object:
    """The levels of a column, in the form of BIDS or of Neurobagel."""
    notes = described.get("Annotations")
    inner = notes.get("Levels") if isinstance(notes, dict) else None
    return described.get("Levels", described.get("levels", inner))


def _meaning(level: object) -> str:
    """What a level means, in lower case; an object has it in `Description` since BIDS 1.9."""
    if isinstance(level, dict):
        level = level.get("Description") or level.get("Label") or ""
    return str(level).strip().lower()


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
    """participants.json beside participants.tsv; sessions.json up to three folders higher.

    And participants.json of the dataset for sessions.tsv and scans.tsv.
    """
    if table.suffix.lower() != ".tsv":
        return []
    kind = table.stem.rpartition("_")[2]
    places = [table.with_suffix(".json")]
    if kind in ("sessions", "scans"):
        above = table.absolute().parents[:3]
        places += [folder / f"{name}.json" for name in (kind, "participants") for folder in above]
    return places


def _sex_in_words(text: str) -> int | None:
    """The sex that the description of a level names; None where it names none or both."""
    words = re.findall(r"\w+", text.lower())
    found = {WORDS_OF_SEX[word] for word in words if word in WORDS_OF_SEX}
    return found.pop() if len(found) == 1 else None
