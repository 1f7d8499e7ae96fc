"""Which images are trained on and which are held out: drawn once, and kept, whatever comes to a site or goes from it.

A run writes its split down, and its checkpoint carries it. So the evaluation measures on what was held out even if the
site has grown since, and a model that is trained further holds out nothing that its start has seen.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from mcdrl_rt.errors import SourceError
from training.recipe import Recipe, recipe_from
from training.sites import ONE_NAME, Sample, find_sites, load_site, site_folder, site_names


@dataclass(frozen=True)
class Split:
    """The images of a run, by ``image_id``.

    Args:
        kept: trained on.
        held: held out.
    """

    kept: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()

    @classmethod
    def of(cls, kept: Sequence[Sample], held: Sequence[Sample], data: Path) -> Split:
        """The split that two lists of samples are; ``data`` is the folder of the sites."""
        return cls(*(frozenset(image_id(sample, data) for sample in side) for side in (kept, held)))

    def side(self, sample: Sample, data: Path) -> bool | None:
        """Whether a sample is kept (True) or held out (False); None where the split knows nothing of it."""
        ids = _ids(sample, data)
        return True if self.kept.intersection(ids) else False if self.held.intersection(ids) else None

    def to_json(self) -> str:
        """As a run and a checkpoint keep it."""
        return json.dumps({"kept": " ".join(sorted(self.kept)), "held": " ".join(sorted(self.held))})

    @classmethod
    def from_json(cls, text: str) -> Split:
        """See ``to_json``.

        Raises:
            ValueError: it is something else.
        """
        content = json.loads(text)
        try:
            return cls(frozenset(content["kept"].split()), frozenset(content["held"].split()))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("it holds no split of images") from error


def image_id(sample: Sample, data: Path) -> str:
    """A hash of an image's place in the site of that name: it tells a name to nobody who does not guess it."""
    return _ids(sample, data)[0]


def _ids(sample: Sample, data: Path) -> list[str]:
    """A sample's ids under each name of its site, the first of which is written; others are of before, when it was the
    folder's of then."""
    folder, *place = sample.image.relative_to(data).parts
    places = ("/".join([name, *place]) for name in site_names(data / folder))
    return [sha256(text.encode(errors="surrogateescape")).hexdigest()[:10] for text in places]


def hold_out(samples: Sequence[Sample], count: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split off about ``count`` samples at random, whole groups at a time; the order of ``samples`` does not matter."""
    ordered = in_order(samples)
    groups = list(dict.fromkeys(sample.group for sample in ordered))
    held: set[str] = set()
    taken = 0
    for i in np.random.default_rng(seed).permutation(len(groups)):
        if taken >= count:
            break
        held.add(groups[i])
        taken += sum(sample.group == groups[i] for sample in ordered)
    return [s for s in ordered if s.group not in held], [s for s in ordered if s.group in held]


def in_order(samples: Sequence[Sample]) -> list[Sample]:
    """Samples in an order that does not depend on where a site lies."""
    return sorted(samples, key=lambda sample: (sample.image.name, str(sample.image)))


def split_sites(data: Path, recipe: Recipe, earlier: Split | None = None) -> tuple[list[Sample], list[Sample]]:
    """Samples of a recipe's sites to train on, and of every site the share that is held out (``hold_out``).

    Args:
        data: the folder of the sites.
        recipe: names the sites, the share and the seed.
        earlier: of the runs that this one goes on from: what was trained on is again, with all of its group; what was
            held out is again, unless the share is 0; only what is new is drawn.

    Raises:
        SourceError: a site is missing, unusable, named twice, or has nothing left to train on.
    """
    share, earlier = recipe.validation_share, earlier or Split()
    kept: list[Sample] = []
    held: list[Sample] = []
    folders = [site_folder(data, name) for name in recipe.train_sites]
    if len({site_names(folder)[0] for folder in folders}) < len(folders):
        raise SourceError(f"two of train_sites, {', '.join(recipe.train_sites)}, are one site by name; {ONE_NAME}")
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise SourceError(f"no site at {missing[0]}; {_instead(data)}")
    for folder in folders:
        samples = load_site(folder, skip_bad=recipe.skips_bad)
        known: dict[str, bool] = {}  # groups, and whether they are trained on
        for sample in samples:
            if side := earlier.side(sample, data):
                known[sample.group] = True
            elif side is False and share:
                known.setdefault(sample.group, False)
        new = [sample for sample in samples if sample.group not in known]
        one, other = hold_out(new, round(share * len(new)), recipe.seed)
        one = in_order([*one, *(sample for sample in samples if known.get(sample.group) is True)])
        other = in_order([*other, *(sample for sample in samples if known.get(sample.group) is False)])
        if not one:
            raise SourceError(f"{folder} has nothing left to train on with a validation_share of {share}")
        kept, held = kept + one, held + other
    return kept, held


def _instead(data: Path) -> str:
    """What sites there are, and how to train on one."""
    names = [folder.name for folder in find_sites(data)]
    if not names:
        return f"{data} has none: --data names the folder of the sites"
    setting = f"train_sites={json.dumps(names[:1], ensure_ascii=False)}"
    return f"{data} has {', '.join(names)}: --set {shlex.quote(setting)}"


def split_of(provenance: Mapping[str, str], data: Path, sites: Collection[str]) -> Split:
    """What a model was trained on, in all the runs it comes from, and what none of them has seen of their sites.

    Args:
        provenance: of its specification.
        data: the folder of the sites.
        sites: names of those that are asked about, all there.

    Checkpoints of before splits were written down say how theirs was drawn: it is drawn again, and right as long as the
    site is what it was.
    """
    kept, held = set[str](), set[str]()
    while "recipe" in provenance:
        recipe = recipe_from(json.loads(provenance["recipe"]))
        split = Split.from_json(provenance["images"]) if "images" in provenance else _drawn_again(recipe, data, sites)
        kept |= split.kept
        held |= split.held
        provenance = json.loads(provenance.get("start", "{}"))
    return Split(frozenset(kept), frozenset(held - kept))


def _drawn_again(recipe: Recipe, data: Path, sites: Collection[str]) -> Split:
    there = tuple(name for name in recipe.train_sites if name in sites)
    return Split.of(*split_sites(data, replace(recipe, train_sites=there)), data) if there else Split()
