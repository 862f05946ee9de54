"""What the tables of public datasets say of a scan: who, how old, which sex, which group and site.

Each reader names its table and the columns it needs. Column names are compared without case and
punctuation (`M/F` is `m_f`), in the spellings of the releases. All problems of all tables are
reported at once. A person whom two rows describe differently is kept, marked, and left out later.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path

from utils.cli import raise_all
from utils.scans.labels import UNKNOWN_WORDS
from utils.scans.sheets import read_rows

DAYS_A_YEAR = 365.25
NEAREST_VISIT = 365  # days; a diagnosis further from the scan than this says little about it
SAME_AGE = 0.05  # years; tables repeat an age rounded differently
NO_ANSWER = (*UNKNOWN_WORDS, ".", "#n/a")
SEX_WORDS = {**dict.fromkeys(("f", "female"), "F"), **dict.fromkeys(("m", "male"), "M")}
MALE_1_FEMALE_2 = {**SEX_WORDS, "1": "M", "2": "F"}


@dataclass(frozen=True)
class Kind:
    """One kind of table.

    Attributes:
        title: its usual file name.
        needed: spellings of each column without which it is of no use, the best one first.
        optional: spellings of columns used where they are there.
    """

    title: str
    needed: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass
class Subject:
    """What the tables say of one scan, or of one person who was scanned.

    Attributes:
        where: file and row that say it.
        age: years, on `day` where that is known; None where unknown.
        sex: F, M, or nothing where unknown.
        day: of `age`: a date as its ordinal (ADNI), or days since entry (OASIS-3).
        visits: what was found on which day, such as (180, "CDR 0.5").
        doubt: why none of it can be used, such as two rows that disagree; mostly nothing.
    """

    where: str
    age: float | None = None
    sex: str = ""
    group: str = ""
    site: str = ""
    day: int | None = None
    visits: list[tuple[int, str]] = field(default_factory=list)
    doubt: str = ""

    def age_at(self, day: int | None) -> float | None:
        """Years at a scan of `day`; `age` itself where either day is unknown."""
        if self.age is None or day is None or self.day is None:
            return self.age
        return self.age + (day - self.day) / DAYS_A_YEAR

    def group_at(self, day: int | None) -> str:
        """What the visit nearest to a scan of `day` found, within a year; else `group`."""
        away = [(abs(visited - day), found) for visited, found in self.visits if day is not None]
        days, found = min(away, default=(NEAREST_VISIT + 1, ""))
        return found if days <= NEAREST_VISIT else self.group


@dataclass(frozen=True)
class Listing:
    """All that the tables of a dataset say.

    Attributes:
        subjects: by the key under which its scan is found: a session, a person or an image.
        days: of scans, by image, where a table knows them.
        notes: for people, one sentence each.
    """

    subjects: dict[str, Subject]
    days: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_tables(paths: Sequence[Path], kinds: Mapping[str, Kind]) -> dict[str, list[dict]]:
    """Reads tables, each as the kind whose columns it has.

    Returns:
        By kind, the rows as cells by field, with `where` (file and row); absent columns are empty.

    Raises:
        FileNotFoundError: no such file.
        ValueError: for every table that is of no kind: the missing columns and those found.
    """
    tables = {name: [] for name in kinds}
    problems = []
    for path in paths:
        rows = read_rows(path)
        header = [_plain(cell) for cell in rows[0]] if rows else []
        name, missing = _closest_kind(header, kinds)
        kind = kinds[name]
        if missing:
            wanted = ", ".join(
                f"{column} ({' or '.join(kind.needed[column])})" for column in missing
            )
            found = ", ".join(rows[0]) if rows else "nothing"
            problems.append(f"{path}: as {kind.title} it lacks {wanted}; columns found: {found}")
            continue
        at = {
            column: header.index(next(name for name in spellings if name in header))
            for column, spellings in {**kind.needed, **kind.optional}.items()
            if set(spellings) & set(header)
        }
        for number, row in enumerate(rows[1:], start=2):
            if any(row):
                cells = dict.fromkeys((*kind.needed, *kind.optional), "")
                cells |= {name: row[index] for name, index in at.items() if index < len(row)}
                tables[name].append({**cells, "where": f"{path}, row {number}"})
    raise_all(problems)
    return tables


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _closest_kind(header: list[str], kinds: Mapping[str, Kind]) -> tuple[str, list[str]]:
    """The kind that `header` lacks least of, of several the richest; and what it lacks."""
    missing = {
        name: [column for column, known in kind.needed.items() if not set(known) & set(header)]
        for name, kind in kinds.items()
    }
    best = min(kinds, key=lambda name: (len(missing[name]), -len(kinds[name].needed)))
    return best, missing[best]


def merge(subjects: dict[str, Subject], key: str, found: Subject) -> None:
    """Adds what a row says to what is known under `key`; a contradiction is marked, not solved."""
    known = subjects.setdefault(key, found)
    if known is found:
        return
    for name in ("age", "sex", "day"):
        old, new = getattr(known, name), getattr(found, name)
        if old in (None, ""):
            setattr(known, name, new)
        elif new not in (None, "") and (abs(new - old) > SAME_AGE if name == "age" else new != old):
            known.doubt = f"{name} {old} in {known.where}, {new} in {found.where}"
    known.group, known.site = known.group or found.group, known.site or found.site
    known.visits += found.visits


def number_in(cells: Mapping[str, str], column: str, problems: list[str]) -> float | None:
    """A number; None where unknown or masked (89+). Otherwise a problem is noted."""
    text = cells[column].strip().lower()
    if text in NO_ANSWER or re.fullmatch(r"\d+\s*\+", text):
        return None
    try:
        # A sheet saved where the decimal sign is a comma.
        return float(text.replace(",", "."))
    except ValueError:
        problems.append(f"{cells['where']}: {column} {cells[column]!r}, expected a number")
        return None


def sex_in(
    cells: Mapping[str, str], problems: list[str], codes: Mapping[str, str] = SEX_WORDS
) -> str:
    """F or M; nothing where unknown. For a word that `codes` does not have a problem is noted."""
    text = cells["sex"].strip().lower().removesuffix(".0")
    if text in NO_ANSWER:
        return ""
    if text not in codes:
        known = ", ".join(codes)
        problems.append(f"{cells['where']}: sex {cells['sex']!r}, expected one of {known}")
    return codes.get(text, "")


def day_in(cells: Mapping[str, str], column: str, problems: list[str]) -> int | None:
    """The ordinal of a date, 2006-04-18 or 4/18/2006 (month first); None where unknown."""
    text = cells[column].strip()
    if text.lower() in NO_ANSWER:
        return None
    for form in ("%Y-%m-%d", "%m/%d/%Y", "%m/%d/%y"):
        try:
            return datetime.strptime(text.split()[0], form).date().toordinal()
        except ValueError:
            continue
    problems.append(
        f"{cells['where']}: {column} {text!r}, expected a date such as {date(2006, 4, 18)} "
        "or 4/18/2006"
    )
    return None


def _group_in(cells: Mapping[str, str], problems: list[str]) -> str:
    return cells.get("group", "")


def _people(
    paths: Sequence[Path],
    kind: Kind,
    *,
    key: str = "(.+)",
    codes: Mapping[str, str] = SEX_WORDS,
    group_in: Callable[[Mapping[str, str], list[str]], str] = _group_in,
) -> Listing:
    """Reads tables with a row a person or session: id, age and sex, group and site where known.

    Args:
        paths: of the tables, all of one kind.
        kind: of the tables, with the columns id, age, sex, and perhaps group and site.
        key: regular expression for the part of the id under which the scan is found (first group).
        codes: F or M by what stands in the column of the sex.
        group_in: the group of a row; it may note problems.
    """
    subjects: dict[str, Subject] = {}
    problems: list[str] = []
    for cells in read_tables(paths, {"people": kind})["people"]:
        found = re.search(key, cells["id"])
        if not found:
            problems.append(f"{cells['where']}: id {cells['id']!r}, expected as in {kind.title}")
            continue
        subject = Subject(
            cells["where"],
            age=number_in(cells, "age", problems),
            sex=sex_in(cells, problems, codes),
            group=group_in(cells, problems),
            site=cells.get("site", ""),
        )
        merge(subjects, found[1], subject)
    raise_all(problems)
    return Listing(subjects)


def read_oasis1(paths: Sequence[Path]) -> Listing:
    """OASIS-1: `oasis_cross-sectional.csv` or .xlsx with ID, M/F, Age, CDR.

    ID is a session: OAS1_0061_MR2 is a second scan, within 90 days, of OAS1_0061, and of the group
    `retest`. A CDR above 0 makes `dementia`; 0 and blank make `healthy`: it was not assessed in
    the young, who are healthy by recruitment.
    """
    columns = {
        "id": ("id", "scan_id", "mri_id"),
        "sex": ("m_f", "sex"),
        "age": ("age",),
        # Without it everybody would be healthy.
        "cdr": ("cdr",),
    }
    return _people(paths, Kind("oasis_cross-sectional.csv", columns), group_in=_oasis1_group)


def _oasis1_group(cells: Mapping[str, str], problems: list[str]) -> str:
    if not cells["id"].endswith("_MR1"):
        return "retest"
    return "dementia" if number_in(cells, "cdr", problems) else "healthy"


def read_oasis2(paths: Sequence[Path]) -> Listing:
    """OASIS-2: `oasis_longitudinal.csv` or `oasis_longitudinal_demographics.xlsx`, a row a session.

    Columns MRI ID, M/F, Age (at that session), and Group and CDR where there. The group becomes
    such as `Converted, CDR 0`: Group is of the person over the years, CDR of the session.
    """
    columns = {"id": ("mri_id",), "sex": ("m_f", "sex"), "age": ("age",)}
    optional = {"group": ("group",), "cdr": ("cdr",)}
    kind = Kind("oasis_longitudinal_demographics.xlsx", columns, optional)
    return _people(paths, kind, group_in=_oasis2_group)


def _oasis2_group(cells: Mapping[str, str], problems: list[str]) -> str:
    rating = number_in(cells, "cdr", problems)
    named = (cells["group"], "" if rating is None else f"CDR {rating:g}")
    return ", ".join(filter(None, named))


OASIS3 = {
    "people": Kind(
        "OASIS3_demographics.csv",
        {"id": ("oasisid",), "sex": ("gender", "sex"), "age": ("ageatentry",)},
    ),
    "ratings": Kind(
        "OASIS3_UDSb4_cdr.csv",
        {"id": ("oasisid",), "day": ("days_to_visit",), "cdr": ("cdrtot",)},
    ),
    "old_people": Kind("the subjects of XNAT Central", {"id": ("subject",), "sex": ("m_f",)}),
    "old_ratings": Kind(
        "ADRC Clinical Data of XNAT Central",
        {"id": ("subject",), "label": ("adrc_adrcclinicaldata_id",), "age": ("ageatentry",),
         "cdr": ("cdr",)},
    ),
}  # fmt: skip


def read_oasis3(paths: Sequence[Path]) -> Listing:
    """OASIS-3: `OASIS3_demographics.csv`, and `OASIS3_UDSb4_cdr.csv` where there.

    Demographics: OASISID, GENDER (1 male, 2 female), AgeatEntry. Ratings: OASISID, days_to_visit,
    CDRTOT. Days count from entry, as in the names of scans, so the age at a scan is AgeatEntry +
    days / 365.25; the group is the CDR of the visit nearest to the scan, within a year. Read too:
    the tables of the first release on XNAT Central (Subject, M/F; Subject, ADRC_ADRCCLINICALDATA
    ID, ageAtEntry, cdr).
    """
    tables = read_tables(paths, OASIS3)
    subjects: dict[str, Subject] = {}
    problems: list[str] = []
    for cells in (row for rows in tables.values() for row in rows):
        subject = Subject(cells["where"], day=0)
        if "sex" in cells:
            subject.sex = sex_in(cells, problems, MALE_1_FEMALE_2)
        if "age" in cells:
            subject.age = number_in(cells, "age", problems)
        if "label" in cells:  # OAS30001_ClinicalData_d0180
            cells["day"] = cells["label"].rpartition("_d")[2]
        if "cdr" in cells:
            day, rating = number_in(cells, "day", problems), number_in(cells, "cdr", problems)
            if day is not None and rating is not None:
                subject.visits.append((round(day), f"CDR {rating:g}"))
        merge(subjects, cells["id"], subject)
    raise_all(problems)
    return Listing(subjects)


ADNI = {
    "visits": Kind(
        "ADNIMERGE.csv",
        {"id": ("ptid",), "age": ("age",), "sex": ("ptgender",), "examined": ("examdate",),
         "visit": ("viscode",)},
        {"baseline": ("examdate_bl",), "diagnosis": ("dx",), "site": ("site",)},
    ),
    "images": Kind(
        "the .csv of an IDA download",
        {"image": ("image_data_id", "image_id"), "id": ("subject", "subject_id"),
         "sex": ("sex",), "age": ("age",), "scanned": ("acq_date", "study_date")},
        {"group": ("group", "research_group")},
    ),
}  # fmt: skip


def read_adni(paths: Sequence[Path]) -> Listing:
    """ADNI: `ADNIMERGE.csv`, the listing of an IDA download, or, best, both.

    ADNIMERGE: PTID, AGE (at baseline, one decimal, the same in all rows of a person), PTGENDER,
    VISCODE, EXAMDATE, and EXAMDATE_bl, DX and SITE where there. The age at a scan is AGE + (scan
    date - baseline date) / 365.25, the group the DX of the visit nearest to the scan, within a
    year. Listing: Image Data ID, Subject, Sex, Age, Acq Date, Group; its Acq Date goes before the
    date in a scan's path. Alone, its own Age is taken, which is at the scan but rounded, and its
    Group, which is that of enrolment.
    """
    tables = read_tables(paths, ADNI)
    subjects: dict[str, Subject] = {}
    days: dict[str, int] = {}
    problems: list[str] = []
    for cells in tables["visits"]:
        merge(subjects, cells["id"], _adni_visit(cells, problems))
    for cells in tables["images"]:
        image = "I" + re.sub(r"\D", "", cells["image"])
        scanned = day_in(cells, "scanned", problems)
        if scanned is not None:
            days[image] = scanned
        if not tables["visits"]:
            age = number_in(cells, "age", problems)
            sex = sex_in(cells, problems)
            merge(subjects, image, Subject(cells["where"], age, sex, cells["group"]))
    raise_all(problems)
    for subject in subjects.values():
        # Without the date of its baseline an age would be taken for that at the scan.
        if tables["visits"] and subject.day is None:
            subject.doubt = subject.doubt or f"{subject.where}: no baseline date"
    alone = (
        "ages are those of the IDA listing: at the scan, but rounded (often to whole years), and "
        "groups are those of enrolment; give ADNIMERGE.csv too for ages to the day"
    )
    return Listing(subjects, days, () if tables["visits"] else (alone,))


def _adni_visit(cells: Mapping[str, str], problems: list[str]) -> Subject:
    examined = day_in(cells, "examined", problems)
    baseline = day_in(cells, "baseline", problems)
    if baseline is None and cells["visit"].lower() == "bl":
        baseline = examined
    known = examined is not None and cells["diagnosis"].lower() not in NO_ANSWER
    return Subject(
        cells["where"],
        age=number_in(cells, "age", problems),
        sex=sex_in(cells, problems),
        site=cells["site"],
        day=baseline,
        visits=[(examined, cells["diagnosis"])] if known else [],
    )


def read_pac2019(paths: Sequence[Path]) -> Listing:
    """PAC 2019: `PAC2019_BrainAge_Training.csv` with subject_ID, age, gender (f, m), site.

    The table of its test scans has no ages until `PAC2019_BrainAge_Test_age.csv`.
    """
    columns = {"id": ("subject_id", "id"), "age": ("age",), "sex": ("gender", "sex")}
    return _people(paths, Kind("PAC2019_BrainAge_Training.csv", columns, {"site": ("site",)}))


def read_ixi(paths: Sequence[Path]) -> Listing:
    """IXI: `IXI.xls` with IXI_ID, SEX_ID (1=m, 2=f), AGE; the first sheet of the workbook.

    Some people stand in two rows, mostly a full one and one with zeros; what they agree on is
    taken, and those with two ages or sexes are marked. Ages may be blank. A 0 of SEX_ID is unknown.
    """
    columns = {
        "id": ("ixi_id", "participant_id", "scan", "id"),
        "age": ("age",),
        "sex": ("sex_id_1_m_2_f", "sex_id", "sex"),
    }
    codes = {**MALE_1_FEMALE_2, "0": ""}
    return _people(paths, Kind("IXI.xls", columns), key=r"^(?:IXI)?0*(\d+)", codes=codes)


def read_camcan(paths: Sequence[Path]) -> Listing:
    """Cam-CAN: `participants.tsv` with participant_id, age, gender_code (1 male, 2 female).

    Or `participant_data.csv` / `standard_data.csv` with CCID, Age, Sex (or Gender).
    """
    columns = {
        "id": ("participant_id", "ccid"),
        "age": ("age",),
        "sex": ("sex", "gender", "gender_text", "gender_code"),
    }
    kind = Kind("participants.tsv of Cam-CAN", columns)
    return _people(paths, kind, key=r"^(?:sub-)?(CC\d+)", codes=MALE_1_FEMALE_2)


def read_openbhb(paths: Sequence[Path]) -> Listing:
    """OpenBHB: `participants.tsv` with participant_id (a number), sex, age, site, diagnosis."""
    columns = {"id": ("participant_id",), "age": ("age",), "sex": ("sex",)}
    kind = Kind(
        "participants.tsv of OpenBHB", columns, {"site": ("site",), "group": ("diagnosis",)}
    )
    return _people(paths, kind, key=r"^(?:sub-)?(\d+)")


def read_bids(paths: Sequence[Path]) -> Listing:
    """Any BIDS dataset: `participants.tsv` with participant_id, age, sex (f, m, female, male)."""
    columns = {"id": ("participant_id",), "age": ("age",), "sex": ("sex", "gender")}
    optional = {"site": ("site",), "group": ("group", "diagnosis")}
    return _people(paths, Kind("participants.tsv", columns, optional), key=r"^(?:sub-)?(\w+)")
