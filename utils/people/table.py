"""One table of people: what each row says of whom, and which of its columns names the scans."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from utils.files import SCAN_SUFFIXES
from utils.people.codebook import (
    SEX_NAMES,
    SEX_WORDS,
    UNKNOWN_WORDS,
    WORDS_OF_SEX,
    DataDictionary,
    codes_in_header,
    is_beyond_years,
    parse_age,
    parse_sex,
    unit_in_header,
    whole_number,
)
from utils.people.columns import FILES, IDS, SESSIONS, find_columns, normalise
from utils.people.matching import Label, Matcher, scan_name
from utils.people.sheets import first_row, read_rows
from utils.people.text_tables import UNDECODED

WORDS_OF_IDS = {"id", "nr", "no", "num", "number", "code", "case", "subject", "sub", "subj",
                "participant", "patient", "ptid", "rid", "ursi", "record"}  # fmt: skip
OTHER_LETTERS = {"o", "x", "u"}  # other and unknown, in a column of sexes


class Table:
    """A table of people; what is wrong with its cells is in `problems`."""

    def __init__(self, path: Path, sex_codes: dict[str, int] | None, *, need_ages: bool):
        """Reads the table and finds its columns; `sex_codes` are the user's.

        Raises:
            FileNotFoundError, ValueError: as `examine_labels`.
        """
        self.path, self.problems = path, []
        rows = read_rows(path)
        if not rows:
            raise ValueError(f"{path}: empty")
        self.columns = find_columns(path, rows, first_row(rows), need_ages=need_ages)
        if self.columns.unclear:
            self.problems.append(
                f"{path}: no column of ages such as age, age_at_scan, age_months or Age (y); not "
                f"understood: {', '.join(self.columns.unclear)}; found {list(self.columns.header)}"
            )
        try:
            dictionary = DataDictionary(path)
        except ValueError as error:
            self.problems.append(str(error))
            dictionary = None
        below = enumerate(rows[self.columns.first :], self.columns.first + 1)
        self._rows = {number: row for number, row in below if any(row)}
        self._missing: set[str] = set()
        self._may_be_months = self._unit_unknown = False
        self._years_per_unit = self._find_unit(dictionary)
        self._sex_codes = self._find_sex_codes(sex_codes, dictionary)
        self._values = {number: self._read_values(row) for number, row in self._rows.items()}
        self._doubt_unit()

    def choose_names(self, scans: Sequence[Path]) -> int:
        """The column that names the scans: one of file names before one of ids.

        Raises:
            ValueError: no column names scans; or two name as many, but contradict each other.
        """
        known, others = self.columns.names, self.columns.others
        if known and not scans:
            return known[0]
        known = sorted(known, key=lambda at: not self._holds_files(at))
        numbered = [] if known else [at for at in others if self._holds_numbers(at)]
        others = [at for at in others if not self._is_of_numbers(at)]
        # Row and scan numbers fit ids such as sub-01 by chance: names count before bare numbers.
        for group, bare in ((known, False), (others, False), (known, True), (numbered, True)):
            found = {at: self._find_all(at, scans, bare=bare) for at in group}
            chosen = max(group, key=lambda at: len(found[at]), default=None)
            if chosen is not None and found[chosen]:
                for rival in group:
                    self._require_agreement(chosen, rival, found)
                return chosen
        if not known:
            raise ValueError(
                f"{self.path}: no column named {', '.join((*IDS, *FILES))}, and none names the "
                f"scans; found {list(self.columns.header)}"
            )
        return min(known, key=self._counts_scans)  # of those that name nobody, one of people

    def read(self, names: int, *, person: str = "") -> list[Label]:
        """The labels of all rows by the names in a column; what is wrong goes to `problems`.

        Args:
            names: index of the column.
            person: whose sessions the column has; empty where it has names of people or scans.
        """
        labels, first_of = self._labels(names, person=person), {}
        for label in labels:
            where = f"{self.path}, row {label.row}"
            if not label.subject_id:
                self.problems.append(f"{where}: the file name or id is empty")
            if len(self._rows[label.row]) <= (self.columns.age or 0):
                text = f"{label.subject_id}: ends before the column of ages"
                self.problems.append(f"{where}: {text}; a line end or a missing cell in it?")
            if UNDECODED.search(name := _cell(self._rows[label.row], names)):
                text = f"{name}: this name is not UTF-8; save the table as UTF-8"
                self.problems.append(f"{where}: {text}")
            wrong = self._values[label.row][2]
            self.problems += [f"{where}: {label.subject_id}: {problem}" for problem in wrong]
            key = (label.subject_id, label.session, label.folders)
            first = first_of.setdefault(key, label)
            if (first.age, first.sex) != (label.age, label.sex):
                self.problems.append(
                    f"{where}: {label.subject_id} stands in row {first.row} already, with another "
                    "age or sex"
                )
        if self._unit_unknown:
            labels = [replace(label, age=None) for label in labels]
        if self.columns.baseline and self.columns.session is not None:
            # The age at baseline, repeated in the rows of all sessions, is the person's.
            people = [replace(label, session=None) for label in labels]
            labels = people + [replace(label, age=None) for label in labels]
        return labels

    def _labels(self, names: int, *, person: str = "") -> list[Label]:
        labels = []
        for number, row in self._rows.items():
            age, sex, _ = self._values[number]
            *folders, name = re.split(r"[\\/]+", _cell(row, names).rstrip("\\/"))
            labels.append(
                Label(
                    person or scan_name(name),
                    age,
                    sex,
                    row=number,
                    source=self.path.name,
                    site=_known(_cell(row, self.columns.site)),
                    group=_known(_cell(row, self.columns.group)),
                    session=_cell(row, names if person else self.columns.session) or None,
                    folders=tuple(part for part in folders if part.strip(".") and ":" not in part),
                )
            )
        return labels

    def _find_all(self, names: int, scans: Sequence[Path], *, bare: bool) -> dict[Path, Label]:
        """The scans that a column names, with their rows; by bare numbers too, or without."""
        matcher = Matcher(self._labels(names), scans)
        found = {scan: label for scan in scans if (label := matcher.find(scan))}
        exact = self._counts_scans(names)
        return {
            scan: label
            for scan, label in found.items()
            if not (number := whole_number(_cell(self._rows[label.row], names)).isdigit())
            or (bare and not (exact and number and label.subject_id != scan_name(scan.name)))
        }

    def _is_of_numbers(self, at: int) -> bool:
        return all(whole_number(_cell(row, at)).isdigit() for row in self._rows.values())

    def _counts_scans(self, at: int) -> bool:
        """Whether numbers in a column are those of scans or sessions: 1 is not sub-01 then."""
        header = self.columns.header[at] if self.columns.header else ""
        return normalise(header) in (*FILES, *SESSIONS)

    def _holds_numbers(self, at: int) -> bool:
        """Whether a column may number people: by its header, and each of them otherwise."""
        cells = [cell for row in self._rows.values() if (cell := _cell(row, at))]
        words = set(normalise(self.columns.header[at]).split("_"))
        return bool(words & WORDS_OF_IDS) and len(set(cells)) == len(cells)

    def _require_agreement(
        self, chosen: int, rival: int, found: Mapping[int, Mapping[Path, Label]]
    ) -> None:
        """Raises ValueError where two columns give a scan another age or sex."""
        for scan, label in found[chosen].items():
            twin = found[rival].get(scan, label)
            values = (label.age, twin.age), (label.sex, twin.sex)
            if any(a != b for a, b in values if None not in (a, b)):
                header = self.columns.header
                raise ValueError(
                    f"{self.path}: {scan.name} is named by the column {header[chosen]} (row "
                    f"{label.row}) and by {header[rival]} (row {twin.row}), with another age or "
                    "sex; one of them expected: rename or remove the other"
                )

    def _holds_files(self, at: int) -> bool:
        """Whether a column holds the names of files, by its header or by the suffix of a cell."""
        if self.columns.header and normalise(self.columns.header[at]) in FILES:
            return True
        return any(_cell(row, at).lower().endswith(SCAN_SUFFIXES) for row in self._rows.values())

    def _read_values(self, row: Sequence[str]) -> tuple[float | None, int | None, list[str]]:
        """Age and sex of a row, and what is wrong with them."""
        age = sex = None
        problems = []
        text = _cell(row, self.columns.age)
        try:
            if self._years_per_unit and whole_number(text) not in self._missing:
                age = parse_age(text, self._years_per_unit)
        except ValueError as error:
            problems.append(f"age {text!r}, {error}")
        text = _cell(row, self.columns.sex)
        try:
            sex = parse_sex(text, self._sex_codes)
        except ValueError as error:
            problems.append(f"sex {text!r}, {error}")
        return age, sex, problems

    def _find_unit(self, dictionary: DataDictionary | None) -> float | None:
        """Years per unit of the ages; None where that is not known."""
        if self.columns.age is None:
            return 1.0
        if dictionary is None:
            return None
        header = self.columns.header[self.columns.age] if self.columns.header else ""
        self._missing = dictionary.missing_codes(header)
        named = unit_in_header(header)
        try:
            stated = dictionary.years_per_unit(header)
        except ValueError as error:
            self.problems.append(str(error))
            return None
        if named and stated and named != stated:
            self.problems.append(
                f"{dictionary.describes(header)['path']}: gives {header!r} another unit than its "
                "name has, so its ages are unknown; make them alike"
            )
            return None
        if named or stated:
            return named or stated
        self._may_be_months = True
        return 1.0

    def _doubt_unit(self) -> None:
        """Where one number is too high for years, and nothing states the unit, all may be months.

        Numbers such as 999 are codes for the unknown, and tell nothing.
        """
        ages = {number: _cell(row, self.columns.age) for number, row in self._rows.items()}
        high = [number for number, text in ages.items() if is_beyond_years(text)]
        if high and self._may_be_months:
            self.problems.append(
                f"{self.path}: the age in row {high[0]} is too high for years and no unit is "
                "stated, so all ages are unknown: correct this row, or call the column age_months "
                "or age_days"
            )
            self._unit_unknown = True

    def _find_sex_codes(
        self, stated: dict[str, int] | None, dictionary: DataDictionary | None
    ) -> dict[str, int | None]:
        """What codes of the sexes mean: the user's, the dictionary's, the header's, or 0 and 1."""
        header = self.columns.header
        name = header[self.columns.sex] if header and self.columns.sex is not None else ""
        own = (dictionary.codes_of_sex(name) if dictionary else {}) or codes_in_header(name)
        cells = {
            number: whole_number(_cell(row, self.columns.sex).lower())
            for number, row in self._rows.items()
        }
        self._note_other_codes(stated or {}, own, set(cells.values()))
        codes = WORDS_OF_SEX | (stated or own or {})
        if not stated and not own:
            unclear = [number for number, cell in cells.items() if cell == "2"]
            codes = SEX_WORDS
        else:
            numbers = [number for number, cell in cells.items() if cell.isdigit()]
            known = any(codes.get(cells[number]) is not None for number in numbers)
            unclear = [] if known else [n for n in numbers if cells[n] in codes]
        if unclear:
            low, high = ("1", "2") if "2" in cells.values() else ("0", "1")
            self.problems.append(
                f"{self.path}, row {unclear[0]}: sex {cells[unclear[0]]}, expected 0 female or 1 "
                f"male; it is not clear what {low} and {high} mean here: give --sex_codes "
                f"{low}=male {high}=female, or --sex_codes {low}=female {high}=male"
            )
        if unclear or (dictionary is None and not stated and not own):
            codes = WORDS_OF_SEX | dict.fromkeys(filter(str.isdigit, cells.values()), None)
        return codes | self._find_foreign_letters(cells, codes)

    def _note_other_codes(
        self, stated: Mapping[str, int], own: Mapping[str, int | None], cells: set[str]
    ) -> None:
        """Says where the user's codes are others than those that the table or its .json states."""
        for code in stated:
            if code in cells and own.get(code) not in (None, stated[code]):
                print(
                    f"note: {self.path}: sex {code} is read as {SEX_NAMES[stated[code]]}, as "
                    f"--sex_codes say, though its own description says {SEX_NAMES[own[code]]}"
                )

    def _find_foreign_letters(
        self, cells: Mapping[int, str], codes: Mapping[str, int | None]
    ) -> dict[str, None]:
        """Letters for sexes of another language: beside H, M is mujer; beside N, F is férfi."""
        letters = {cell: row for row, cell in cells.items() if len(cell) == 1 and cell.isalpha()}
        letters = {
            letter: row
            for letter, row in letters.items()
            if letter not in OTHER_LETTERS and codes.get(letter, letter) is not None
        }
        sexes = {codes[letter] for letter in letters if letter in codes}
        if len(letters) < 2 or len(sexes) != 1 or not letters.keys() - WORDS_OF_SEX.keys():
            return {}
        found = " and ".join(sorted(map(str.upper, letters)))
        self.problems.append(
            f"{self.path}: sexes {found}, of another language than M and F? taken as unknown: give "
            "--sex_codes such as h=male m=female"
        )
        return dict.fromkeys(letters)


def _known(cell: str) -> str | None:
    return None if cell.lower() in UNKNOWN_WORDS else cell


def _cell(row: Sequence[str], at: int | None) -> str:
    """A cell; empty where the table has no such column, or the row ends before it."""
    return row[at] if at is not None and at < len(row) else ""
