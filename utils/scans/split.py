"""Deals people out by chance, balanced in age: to train, val and test, or to folds.

All scans of one person land in one part, or a network would be tested on people seen in training.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.cli import raise_all
from utils.files import image_stem
from utils.people.labels import read_labels
from utils.people.matching import Label

PARTS = ("train", "val", "test")
FRACTIONS = (0.7, 0.15, 0.15)


def read_scan_labels(
    scans: Sequence[Path],
    *,
    sheets: str | Path | Sequence[str | Path],
    sex_codes: dict[str, int] | None = None,
    site: str | None = None,
) -> dict[str, Label]:
    """The row of every scan in the label sheets, by the scan's name without image suffix.

    `site` is that of the scans of which no sheet gives one.

    Raises:
        FileNotFoundError: no such sheet.
        ValueError: bad rows of the sheet; or all scans without a row or an age.
    """
    labels = read_labels(sheets, scans, sex_codes=sex_codes, site=site)
    found, problems = {}, []
    for scan in scans:
        label = labels.find(scan)
        if label is None:
            problems.append(f"{scan}: no row in {labels.names}; an age in years expected")
        elif label.age is None:
            doubt = label.doubt or f"no age in {label.source}, row {label.row}"
            problems.append(f"{scan}: {doubt}; years expected")
        else:
            found[image_stem(scan.name)] = label
    raise_all(problems)
    return found


def split_by_person(
    ages: Mapping[str, float],
    *,
    person_of: Mapping[str, str],
    fractions: Sequence[float],
    seed: int,
) -> dict[str, list[str]]:
    """Deals people out so that train, val and test have their fractions of people of every age.

    People are sorted by age (of a person scanned several times: the mean age) and cut into strata
    of neighbours, each as long as makes about one person of the smallest part. In each stratum a
    part gets its fraction rounded down or up. The parts that have been rounded down most are
    rounded up next, so the whole adds up too.

    Args:
        ages: years, by scan.
        person_of: who was scanned, by scan.
        fractions: of people, for train, val and test; their sum is 1. A part of 0 stays empty.
        seed: the same seed gives the same split, whatever the order of `ages`.

    Returns:
        Sorted scans by part: train, val, test.

    Raises:
        ValueError: fractions that are not three shares of 1, scans without person or age, or so
            few people that a part would stay empty.
    """
    shares = _checked_fractions(fractions)
    scans_of = _scans_of_people(ages, person_of=person_of)
    people = sorted(
        scans_of, key=lambda person: (np.mean([ages[s] for s in scans_of[person]]), person)
    )
    rng = np.random.default_rng(seed)
    parts = {part: [] for part in PARTS}
    for stratum, seats in _strata(people, shares=shares):
        for person, part in zip(stratum, rng.permutation(np.repeat(PARTS, seats)), strict=True):
            parts[str(part)] += scans_of[person]
    empty = [part for part, share in zip(PARTS, shares, strict=True) if share and not parts[part]]
    if empty:
        raise ValueError(
            f"{len(people)} people are too few for fractions {' '.join(map(str, fractions))}: "
            f"{' and '.join(empty)} would stay empty; add people, or give 0 for a part that you "
            "do not need"
        )
    return {part: sorted(scans) for part, scans in parts.items()}


def _scans_of_people(
    ages: Mapping[str, float], *, person_of: Mapping[str, str]
) -> dict[str, list[str]]:
    """Sorted scans by person; ValueError listing scans without a person or a usable age."""
    problems, scans_of = [], defaultdict(list)
    for scan in sorted(ages):
        if scan not in person_of:
            problems.append(f"{scan}: no person is known for it")
        elif not np.isfinite(ages[scan]):
            problems.append(f"{scan}: age {ages[scan]}, expected years")
        else:
            scans_of[person_of[scan]].append(scan)
    raise_all(problems)
    return scans_of


def _checked_fractions(fractions: Sequence[float]) -> np.ndarray:
    """The three fractions as an array; ValueError unless they are shares of one whole."""
    shares = np.asarray(fractions, dtype=float)
    # `not >=` also refuses NaN.
    if shares.shape != (len(PARTS),) or not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(
            f"fractions: three shares of 1 for {', '.join(PARTS)} expected, such as 0.7 0.15 0.15; "
            f"found {' '.join(map(str, fractions))}, sum {shares.sum():g}"
        )
    return shares


def _strata(people: list[str], *, shares: np.ndarray) -> list[tuple[list[str], np.ndarray]]:
    """Cuts people, sorted by age, into strata, each with the number of people for every part."""
    smallest = shares[shares > 0].min()
    strata = np.array_split(np.arange(len(people)), max(1, len(people) // round(1 / smallest)))
    owed = np.zeros(len(PARTS))
    dealt = []
    for stratum in strata:
        exact = shares * len(stratum)
        seats = np.floor(exact + 1e-9).astype(int)
        owed += exact - seats
        # A share that is a whole number already (0 included) is not rounded up.
        behind = np.where(exact - seats > 1e-9, owed, -np.inf)
        rounded_up = np.argsort(-behind, kind="stable")[: len(stratum) - seats.sum()]
        seats[rounded_up] += 1
        owed[rounded_up] -= 1
        dealt.append(([people[at] for at in stratum], seats))
    return dealt


def deal_to_folds(
    people: Mapping[str, tuple[float, int]],
    *,
    folds: int,
    seed: int = 0,
    site_of: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """The fold of each person, from 0; the folds are balanced in age and sex within each site.

    The people of a site are sorted by sex and age; of each run of neighbours every fold gets one,
    by chance. Where too few are left for all folds, the smallest folds get them.

    Args:
        people: (age in years, sex) by person.
        folds: how many.
        seed: the same seed gives the same folds.
        site_of: of each person; None: one site.

    Raises:
        ValueError: fewer people than folds, or fewer than two folds.
    """
    if not 2 <= folds <= len(people):
        raise ValueError(f"--number {folds}: at least 2 and at most {len(people)} people expected")
    at_sites = defaultdict(list)
    for person in sorted(people, key=lambda person: (*people[person][::-1], person)):
        at_sites[site_of[person] if site_of else ""].append(person)
    generator = np.random.default_rng(seed)
    dealt: dict[str, int] = {}
    sizes = [0] * folds
    for _, order in sorted(at_sites.items()):
        for start in range(0, len(order), folds):
            drawn = sorted(generator.permutation(folds).tolist(), key=sizes.__getitem__)
            for person, fold in zip(order[start : start + folds], drawn, strict=False):
                dealt[person] = fold
                sizes[fold] += 1
    return dealt


def hold_out_sites(site_of: Mapping[str, str], person_of: Mapping[str, str]) -> dict[str, int]:
    """The fold of each scan: one fold for each site, in the order of the sites' names.

    Args:
        site_of: by scan; empty where it is unknown.
        person_of: who was scanned, by scan.

    Raises:
        ValueError: scans of unknown site, one site alone, or all people with scans of two sites:
            networks trained without a site would know them.
    """
    unknown = [scan for scan, site in site_of.items() if not site]
    problems = [f"{scan}: no site; a column site, or --site expected" for scan in unknown]
    of_person: dict[str, str] = {}
    for scan, site in site_of.items():
        first = of_person.setdefault(person_of[scan], site)
        if site and first and site != first:
            problems.append(
                f"{scan}: a scan of {person_of[scan]} at {site}, others are at {first}: people of "
                "one site each expected; leave these scans out"
            )
    raise_all(problems)
    sites = sorted(set(site_of.values()))
    if len(sites) < 2:
        raise ValueError(f"--hold_out site: all scans are of {sites[0]}, several sites expected")
    return {scan: sites.index(site) for scan, site in site_of.items()}


def describe_ages(ages: Sequence[float], *, people: int) -> str:
    """How many scans of how many people, and mean, SD and range of their ages in years."""
    text = f"{len(ages)} scans of {people} people"
    if not len(ages):
        return text
    years = np.array(ages)
    return (
        f"{text}, age {years.mean():.1f} (SD {years.std():.1f}, {years.min():g} to "
        f"{years.max():g}) years"
    )
