"""People who refused: kept as vectors, recognised, never skipped in silence."""

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from idgen import blocklist, cli
from idgen.blocklist import Blocklist, default_path
from idgen.encoders.arcface import judge_encoder, mini_encoder
from idgen.encoders.card import read_encoder_card
from idgen.errors import (
    ConfigError,
    EncoderMismatchError,
    IdentityError,
    IdgenError,
    RefusedPersonError,
)
from idgen.identity import Feature, Identity

TINY, OTHER = "tiny@0123456789ab", "other@0123456789ab"


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data of this test alone."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv(blocklist.VARIABLE, raising=False)
    return tmp_path / "data" / "idgen" / "blocklist.safetensors"


def towards(cosine: float, encoder: str = TINY, dim: int = 8) -> Identity:
    """Somebody whose similarity to the first axis is ``cosine``."""
    vector = np.zeros(dim)
    vector[:2] = cosine, np.sqrt(1 - cosine**2)
    return Identity.from_vector(vector, encoder)


def both(cosine: float) -> Identity:
    return Identity((*towards(cosine).features, *towards(cosine, OTHER).features))


# ---- the library


def test_who_is_on_the_list_is_refused_from_the_threshold_on() -> None:
    listed = Blocklist()
    assert listed.add(towards(1), "Ann") == "Ann"
    limit = 0.6
    listed.check(towards(0.6 - 1e-6), limit)
    at_least = [towards(0.6 + 1e-6), towards(0.9), towards(1)]
    for person in at_least:
        with pytest.raises(RefusedPersonError, match=r"this is 'Ann', who refused .*or above 0.600"):
            listed.check(person, limit)
    error = RefusedPersonError("x")
    assert isinstance(error, IdgenError)
    assert isinstance(error, PermissionError)
    listed.remove("Ann")
    listed.check(towards(1), limit)


def test_the_threshold_is_the_cards_at_one_in_a_thousand() -> None:
    for encoder in (mini_encoder(), judge_encoder()):
        card = read_encoder_card(encoder)
        assert card is not None
        limit = card.thresholds["1e-3"]
        listed = Blocklist()
        listed.add(towards(1, encoder.id, 128))
        assert listed.threshold(encoder.id) == listed.threshold(encoder) == limit
        listed.check(towards(limit - 1e-4, encoder.id, 128))
        with pytest.raises(RefusedPersonError, match="person-1"):
            listed.check(towards(limit + 1e-4, encoder.id, 128))


def test_without_a_card_a_threshold_must_be_given() -> None:
    listed = Blocklist()
    listed.add(towards(1))
    with pytest.raises(ConfigError, match=rf"threshold of {TINY} is not known.*nothing of that name"):
        listed.check(towards(0.1))
    listed.check(towards(0.1), 0.5)
    stale = Blocklist()
    stale.add(towards(1, "mini@0123456789ab"))  # of a mini that is not on this disk any more
    with pytest.raises(ConfigError, match="under that name lies mini@"):
        stale.check(towards(0.1, "mini@0123456789ab"))


def test_an_encoder_that_is_no_pack_is_known_by_itself(tmp_path: Path) -> None:
    """As the pipeline has it: an ONNX file of the user's, with its card beside it."""
    mini = mini_encoder()
    for suffix, data in ((".onnx", mini.path.read_bytes()), (".json", None)):
        if data is None:
            card = json.loads(mini.path.with_suffix(suffix).read_text())
            data = json.dumps({**card, "encoder": card["encoder"].replace("mini@", "mine@")}).encode()
        (tmp_path / f"mine{suffix}").write_bytes(data)
    from idgen.encoders.arcface import onnx_encoder

    mine = onnx_encoder(tmp_path / "mine.onnx")
    listed = Blocklist()
    listed.add(towards(1, mine.id, 128))
    with pytest.raises(ConfigError, match="threshold of mine@"):
        listed.check(towards(0.9, mine.id, 128))
    with pytest.raises(RefusedPersonError):
        listed.check(towards(0.9, mine.id, 128), encoder=mine)
    listed.check(towards(0.1, mine.id, 128), encoder=mine)


def test_who_cannot_be_compared_is_not_passed_over() -> None:
    listed = Blocklist()
    listed.add(towards(1), "Ann")
    for number, name in enumerate(("Bob", "Cid", "Dan", "Eve")):
        listed.add(towards(number / 10, OTHER), name)
    message = (
        rf"not checked against people who refused: 'Bob', 'Cid', 'Dan' and 1 more .* compared by {TINY}\. "
        "Embed their photos again .*idgen blocklist add PHOTO --name NAME --encoder SPEC.*--allow-unchecked"
    )
    with pytest.raises(EncoderMismatchError, match=message):
        listed.check(towards(0.1), 0.5)
    listed.check(towards(0.1), 0.5, allow_unchecked=True)
    with pytest.raises(RefusedPersonError):  # whoever can be compared is, first
        listed.check(towards(0.9), 0.5, allow_unchecked=True)
    with pytest.raises(RefusedPersonError):
        listed.check(towards(0.9), 0.5)
    without = Identity((Feature(TINY, "wplus", np.zeros((2, 4))),))
    with pytest.raises(EncoderMismatchError, match="any face vector, for there is none"):
        listed.check(without)
    Blocklist().check(without)


def test_one_encoder_in_common_is_enough() -> None:
    listed = Blocklist()
    listed.add(towards(1, OTHER), "Ann")
    listed.check(both(0.1), 0.5)
    with pytest.raises(RefusedPersonError, match=f"by {OTHER}"):
        listed.check(both(0.9), 0.5)


def test_a_person_gets_the_vectors_of_further_encoders() -> None:
    listed = Blocklist()
    listed.add(towards(1), "Ann")
    listed.add(towards(1, OTHER), "Ann")
    assert [feature.encoder for feature in listed.people["Ann"].features] == [TINY, OTHER]
    with pytest.raises(ConfigError, match=rf"'Ann' is on the list with a vector of {TINY} already"):
        listed.add(towards(0.5), "Ann")
    with pytest.raises(EncoderMismatchError, match=r"of shape \(8,\), this one is of \(4,\)"):
        listed.add(towards(1, dim=4), "Bob")
    assert set(listed.people) == {"Ann"}


def test_a_gallery_holds_everybody_by_one_encoder() -> None:
    listed = Blocklist()
    assert listed.gallery(TINY).shape == (0, 0)
    listed.add(towards(1))
    listed.add(both(0.5))
    np.testing.assert_array_equal(listed.gallery(TINY), [towards(c).face_vector.value for c in (1, 0.5)])
    with pytest.raises(EncoderMismatchError, match=rf"'person-1' of .* cannot be compared by {OTHER}"):
        listed.gallery(OTHER)
    assert len(listed.gallery(OTHER, allow_unchecked=True)) == 1


@pytest.mark.parametrize("name", ["", " Ann", "Ann ", "a\nb", "a\x1b[31m", "a" * 101])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError, match="1 to 100 printable characters"):
        Blocklist().add(towards(1), name)


def test_only_face_vectors_are_kept() -> None:
    tokens = Feature(TINY, "image_tokens", np.ones((2, 4)))
    listed = Blocklist()
    listed.add(Identity((tokens, Feature(TINY, "face_vector", np.eye(1, 8)[0], norm=21.0))))
    (kept,) = listed.people["person-1"].features
    assert (kept.kind, kept.norm) == ("face_vector", None)
    with pytest.raises(IdentityError, match="has no face_vector"):
        listed.add(Identity((tokens,)))


# ---- the file


def test_the_list_comes_back_and_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "list.safetensors"
    listed = Blocklist(path=path)
    listed.add(both(1), "Ann Ähnlich")
    listed.add(towards(0.5))
    listed.save()
    back = Blocklist.load(path)
    assert list(back.people) == ["Ann Ähnlich", "person-1"]
    for name, identity in listed.people.items():
        for mine, theirs in zip(identity.features, back.people[name].features, strict=True):
            assert mine.encoder == theirs.encoder
            np.testing.assert_array_equal(mine.value, theirs.value)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with safe_open(path, framework="np") as file:
        assert {tuple(file.get_tensor(key).shape) for key in file.keys()} == {(8,)}  # noqa: SIM118
    before = path.read_bytes()
    back.save()
    assert path.read_bytes() == before
    back.remove("Ann Ähnlich")
    back.remove("person-1")
    back.save()
    assert len(Blocklist.load(path)) == 0


def test_where_the_list_lies(tmp_path: Path, own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_path() == own_data
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".local" / "share" / "idgen" / "blocklist.safetensors"
    monkeypatch.setenv(blocklist.VARIABLE, "~/mine.safetensors")
    assert default_path() == tmp_path / "mine.safetensors"


def test_a_list_that_was_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(Blocklist.load()) == 0  # nobody has refused yet
    Blocklist.load().check(towards(1))
    message = "no list of people who refused at .*nobody would be checked"
    with pytest.raises(IdentityError, match=message):
        Blocklist.load(tmp_path / "lsit.safetensors")
    monkeypatch.setenv(blocklist.VARIABLE, str(tmp_path / "lsit.safetensors"))
    with pytest.raises(IdentityError, match=message):
        Blocklist.load().check(towards(1))
    assert len(Blocklist.load(may_be_missing=True)) == 0


def test_one_call_refuses_by_the_users_own_list(own_data: Path) -> None:
    own_data.parent.mkdir(parents=True)
    listed = Blocklist()
    listed.add(towards(1, mini_encoder().id, 128), "Ann")
    listed.save()
    with pytest.raises(RefusedPersonError, match="'Ann'"):
        Blocklist.load().check(towards(0.9, mini_encoder().id, 128))
    Blocklist.load().check(towards(0.1, mini_encoder().id, 128), encoder=mini_encoder())
    with pytest.raises(EncoderMismatchError, match="not checked"):
        Blocklist.load().check(towards(0.9))
    Blocklist.load().check(towards(0.9), allow_unchecked=True)


def _write(path: Path, head: dict[str, str]) -> None:
    save_file({"a": np.eye(1, 8, dtype=np.float32)[0]}, path, head)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({}, "is no list of people who refused"),
        ({"idgen_blocklist": "x", "people": "[]"}, "is no list of people who refused"),
        ({"idgen_blocklist": "2", "people": "[]"}, "written by a newer idgen"),
        ({"idgen_blocklist": "1"}, "is a damaged list"),
        ({"idgen_blocklist": "1", "people": "["}, "is a damaged list"),
        ({"idgen_blocklist": "1", "people": '[{"name": "Ann"}]'}, "is a damaged list"),
        (
            {"idgen_blocklist": "1", "people": json.dumps([{"name": "A", "encoder": TINY, "tensor": "b"}])},
            "is no list of people who refused: .*b",
        ),
        (
            {"idgen_blocklist": "1", "people": json.dumps([{"name": "A", "encoder": "tiny", "tensor": "a"}])},
            "an encoder is named",
        ),
    ],
)
def test_files_that_are_no_list(tmp_path: Path, head: dict[str, str], message: str) -> None:
    _write(tmp_path / "list.safetensors", head)
    with pytest.raises(IdentityError, match=message):
        Blocklist.load(tmp_path / "list.safetensors")


def test_a_name_in_a_file_cannot_command_the_terminal(tmp_path: Path) -> None:
    rows = [{"name": "\x1b[31m", "encoder": TINY, "tensor": "a"}]
    _write(tmp_path / "list.safetensors", {"idgen_blocklist": "1", "people": json.dumps(rows)})
    with pytest.raises(ConfigError, match="printable"):
        Blocklist.load(tmp_path / "list.safetensors")


def test_a_list_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "list.safetensors"
    listed = Blocklist(path=path)
    listed.add(towards(1))
    listed.save()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(IdentityError, match="is no list of people who refused"):
        Blocklist.load(path)


# ---- the command


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*words: object) -> tuple[int, str, str]:
        code = cli.main(["blocklist", *map(str, words)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eileen Collins, NASA, public domain."""
    path = tmp_path_factory.mktemp("photos") / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(path)
    return path


def test_a_photo_is_put_on_the_list_shown_and_taken_off(
    run: Run, photo: Path, own_data: Path, tmp_path: Path
) -> None:
    assert run("show") == (0, f"{own_data}: nobody on the list\n", "")
    code, out, _ = run("add", photo, "--name", "Ann")
    assert code == 0
    assert out == f"{own_data}: Ann refused, by {mini_encoder().id}; 1 on the list\n"
    assert stat.S_IMODE(own_data.parent.stat().st_mode) == 0o700
    assert own_data.stat().st_size < 2000  # a vector, no photo

    cli.main(["embed", str(photo), "--out", str(tmp_path / "who.safetensors")])
    with pytest.raises(RefusedPersonError):
        Blocklist.load().check(Identity.load(tmp_path / "who.safetensors"))

    assert run("add", photo, "--name", "Ann", "--encoder", "judge")[0] == 0
    code, out, _ = run("show")
    assert out.splitlines()[1] == f"  Ann  {mini_encoder().id}, {judge_encoder().id}"
    code, _, err = run("add", photo, "--name", "Ann")
    assert (code, err.count("\n")) == (2, 1)
    assert "already" in err

    code, _, err = run("remove", "Anm")
    assert code == 2
    assert "nobody called 'Anm' is on the list; did you mean 'Ann'?" in err
    assert run("remove", "Ann") == (0, f"{own_data}: Ann is off the list; 0 left\n", "")
    Blocklist.load().check(Identity.load(tmp_path / "who.safetensors"))


def test_several_encoders_and_photos_at_once(run: Run, photo: Path, tmp_path: Path) -> None:
    mirrored = tmp_path / "mirrored.png"
    Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored)
    path = tmp_path / "list.safetensors"
    code, out, _ = run("add", photo, mirrored, "--encoder", "mini", "--encoder", "judge", "--list", path)
    assert code == 0
    assert out.count("similarity to the others") == 2
    (identity,) = Blocklist.load(path).people.values()
    assert [f.encoder for f in identity.features] == [mini_encoder().id, judge_encoder().id]


def test_a_saved_identity_gives_all_its_vectors(run: Run, tmp_path: Path) -> None:
    both(1).save(tmp_path / "who.safetensors")
    path = tmp_path / "list.safetensors"
    assert run("add", tmp_path / "who.safetensors", "--list", path)[0] == 0
    assert [f.encoder for f in Blocklist.load(path).people["person-1"].features] == [TINY, OTHER]
    code, _, err = run("add", tmp_path / "who.safetensors", "--encoder", "mini", "--list", path)
    assert code == 2
    assert "mini@" in err
    assert run("show", "--list", path)[1] == f"{path}: 1 on the list\n  person-1  {TINY}, {OTHER}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ad", "x.png"), "blocklist has no action 'ad'; did you mean 'add'? (there is: add, show, remove)"),
        (("show", "--list", "no.safetensors"), "no list of people who refused at no.safetensors"),
        (("remove", "Ann", "--list", "no.safetensors"), "no list of people who refused"),
        (("show", "--list", "list.json"), "--list must end in .safetensors, got 'list.json'"),
        (("add", "nobody.png"), "no such file: nobody.png"),
        (("add", "nobody.safetensors"), "no such file: nobody.safetensors"),
        (("add", "x.png", "--encoder", "nobody"), "no encoder 'nobody'"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    run: Run, own_data: Path, words: tuple[str, ...], message: str
) -> None:
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not own_data.exists()


def test_a_photo_without_a_face_leaves_the_list_as_it_was(run: Run, own_data: Path, tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((400, 300)).save(tmp_path / "wall.png")
    code, _, err = run("add", tmp_path / "wall.png")
    assert code == 2
    assert "no face found" in err
    assert not own_data.parent.exists()


def test_help_is_quick_and_shows_the_actions(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"  {action} " in out for action in ("add", "show", "remove"))
    code, out, err = run()
    assert (code, out) == (2, "")
    assert err.startswith("usage: idgen blocklist")
    code = """
import sys
from idgen.cli import main
for words in (["--help"], ["show"], ["add", "--help"]):
    try:
        main(["blocklist", *words])
    except SystemExit:
        pass
print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: idgen blocklist add" in done.stdout
    assert not {"torch", "diffusers", "onnxruntime"} & {
        name.partition(".")[0] for name in done.stderr.split()
    }
