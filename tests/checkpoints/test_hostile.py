"""Checkpoints made to harm: each is refused in one go, with a remedy, without running code or taking memory for it."""

import io
import json
import math
import os
import pickle
import resource
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from gmcli.checkpoints import weights
from gmcli.checkpoints.convert import convert
from gmcli.checkpoints.load import load_checkpoint
from gmcli.checkpoints.locate import fingerprint, locate_checkpoint
from gmcli.checkpoints.lora import ADAPTER, adapter_record
from gmcli.cli.main import cli
from gmcli.errors import CheckpointError

pytestmark = pytest.mark.timeout(100)

SHARD = "pytorch_model-00002-of-00002.bin"
BIAS = "model.text_hidden_fcs.0.2.bias"
GB = 1 << 30


@pytest.fixture(autouse=True)
def little_memory():
    """Give each test half a gigabyte beyond what the process has: whoever believes a file's claims runs out of it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GB // 2, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def original(tmp_path_factory, small_folder) -> Path:
    from tests.original_layout import write_original_layout

    folder = tmp_path_factory.mktemp("original")
    write_original_layout(folder, load_checkpoint(str(small_folder)))
    return folder


@pytest.fixture
def own(small_folder, tmp_path) -> Path:
    """A copy of a checkpoint in our own layout, to be damaged."""
    return Path(shutil.copytree(small_folder, tmp_path / "own"))


@pytest.fixture
def foreign(original, tmp_path) -> Path:
    """A copy of a checkpoint in the original layout, to be damaged; its tower lies beside it."""
    shutil.copytree(original, tmp_path / "c")
    return tmp_path / "c" / "tiny-mora"


def refused(folder: Path, words: str) -> CheckpointError:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(str(folder))
    assert caught.value.hint
    assert len(caught.value.message) < 200_000
    return caught.value


def edit(path: Path, *names: str, value: object) -> None:
    whole = json.loads(path.read_text())
    part = whole
    for name in names[:-1]:
        part = part[name]
    part[names[-1]] = value
    path.write_text(json.dumps(whole))


def test_the_undamaged_ones_load(own, foreign):
    for folder in (own, foreign):
        assert load_checkpoint(str(folder))


# Configurations


@pytest.mark.parametrize(
    ("names", "value", "words"),
    [
        ("llm.num_hidden_layers", 10**7, "llm.num_hidden_layers: 10000000 is not from 1 to"),
        ("llm.num_hidden_layers", 999, "the weights have no more layers"),
        ("llm.num_hidden_layers", -1, "is not from 1 to"),
        ("llm.vocab_size", -5, "vocab_size -5"),
        ("llm.vocab_size", 10**15, "is not from 1 to"),
        ("llm.hidden_size", 0, "is not from 1 to"),
        ("llm.hidden_size", 10**400, "is not from 1 to"),
        ("llm.intermediate_size", 10**19, "is not from 1 to"),
        ("llm.num_attention_heads", 0, "is not from 1 to"),
        ("llm.num_attention_heads", 7, "is not a multiple of num_attention_heads"),
        ("llm.num_key_value_heads", 3, "is not a multiple of num_key_value_heads"),
        ("llm.max_position_embeddings", 0, "is not from 1 to"),
        ("llm.rms_norm_eps", math.nan, "is not a number above 0"),
        ("llm.rms_norm_eps", 10**400, "has the wrong type"),
        ("llm.rope_theta", 0.0, "is not a number above 0"),
        ("llm.num_hidden_layers", math.nan, "has the wrong type"),
        ("llm", 3, "llm: expected an object"),
        ("clip.num_hidden_layers", 10**7, "is not from 1 to"),
        ("clip.image_size", 10**9, "is not from 1 to"),
        ("clip.patch_size", 500, "do not fit each other"),
        ("clip.patch_size", 0, "is not from 1 to"),
        ("clip.select_layer", -99, "names no layer"),
        ("clip.select_layer", 0, "names no layer"),
        ("clip.hidden_act", "xielu", "hidden_act 'xielu' is none of"),
        ("sam.depth", 10**7, "is not from 1 to"),
        ("sam.decoder_depth", 10**7, "is not from 1 to"),
        ("sam.iou_head_depth", 10**7, "is not from 1 to"),
        ("sam.num_multimask_outputs", 10**9, "is not from 1 to"),
        ("sam.window_size", -3, "is not from 1 to"),
        ("sam.num_heads", 0, "is not from 1 to"),
        ("sam.decoder_heads", 7, "is not a multiple of decoder_heads"),
        ("sam.mask_in_chans", 1, "is not a multiple of 4"),
        ("sam.global_attn_indexes", [99], "names layers that are not there"),
        ("sam.image_size", 10**5, "do not fit each other"),
        ("localizer_bins", -1, "localizer_bins"),
        ("localizer_bins", 10**12, "localizer_bins"),
        ("seg_token", ["x"], r"no \['x'\] token"),
        ("conversation", "x" * 10**6, "is none of"),
        ("\x1b[2J", 1, "unknown field"),
    ],
)
def test_own_sizes_that_no_model_has(own, names, value, words):
    edit(own / "config.json", *names.split("."), value=value)
    refused(own, words)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("num_hidden_layers", 10**7, "is not from 1 to"),
        ("vocab_size", -3, "vocab_size -3"),
        ("hidden_size", 0, "is not from 1 to"),
        ("num_attention_heads", 0, "is not from 1 to"),
        ("num_key_value_heads", "abc", "has the wrong type"),
        ("rms_norm_eps", "x", "has the wrong type"),
        ("rope_theta", [1], "has the wrong type"),
        ("mm_vision_select_layer", [1], "has the wrong type"),
        ("mm_vision_select_layer", -99, "names no layer"),
        ("mm_vision_tower", 7, "names no mm_vision_tower"),
        ("mm_vision_tower", "x" * 5000, "names no mm_vision_tower"),
        ("mm_vision_tower", "a\0b", "was not found"),
        ("mm_vision_tower", "/etc", "config.json is missing"),
        ("visual_tokens", "bogus", "'bogus' is none of"),
    ],
)
def test_original_sizes_that_no_model_has(foreign, name, value, words):
    edit(foreign / "config.json", name, value=value)
    refused(foreign, words)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("vision_config", [1], "expected an object"),
        ("hidden_size", "x", "has the wrong type"),
        ("image_size", [224], "has the wrong type"),
        ("num_hidden_layers", 10**7, "is not from 1 to"),
        ("hidden_act", "no such thing", "is none of"),
    ],
)
def test_towers_that_are_none(foreign, name, value, words):
    edit(foreign.parent / "tiny-clip" / "config.json", name, value=value)
    refused(foreign, words)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_labels", 10**9),  # transformers makes a name for each
        ("torch_dtype", "os.system"),
        ("attn_implementation", "someone/kernel"),  # transformers downloads it, and runs it
        ("auto_map", {"AutoModel": "evil.Evil"}),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
    ],
)
def test_what_is_no_size_never_reaches_transformers(foreign, name, value):
    before = load_checkpoint(str(foreign)).model.config
    edit(foreign.parent / "tiny-clip" / "config.json", name, value=value)
    loaded = load_checkpoint(str(foreign)).model
    assert loaded.config == before
    assert loaded.vision_tower.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["config.json", "added_tokens.json"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 10**6, "cannot be read as JSON"),
        ('{"a": ' + "9" * 10_000 + "}", "cannot be read as JSON"),
        ("{}" + " " * (9 << 20), "more than 8388608 bytes"),
        ("[]", "expected a JSON object"),
    ],
)
def test_small_files_that_are_none(own, name, content, words):
    (own / name).write_text(content)
    refused(own, words)


def test_a_pipe_is_not_waited_for(own):
    (own / "config.json").unlink()
    os.mkfifo(own / "config.json")
    refused(own, "config.json is missing")


@pytest.mark.parametrize(
    "tokens",
    [
        {"[SEG]": -1},
        {"[SEG]": 10**21},
        {"[SEG]": True},
        {"": 3, "[SEG]": 4},
        {f"t{i}": i % 2000 for i in range(20_000)} | {"[SEG]": 3},
    ],
    ids=["negative", "huge", "bool", "no name", "many"],
)
def test_added_tokens_that_make_no_sense(own, tokens):
    (own / "added_tokens.json").write_text(json.dumps(tokens))
    refused(own, "expected an object of token names and ids")


@pytest.mark.parametrize(
    "decoder", [[], 3, {"abc": {"content": "[SEG]"}}, {"1": {"content": ["[SEG]"]}}, {"1": {}}, {"1": None}]
)
def test_decoders_that_make_no_sense(own, decoder):
    (own / "added_tokens.json").unlink()
    (own / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    refused(own, "expected an object of token names and ids")


@pytest.mark.parametrize("content", [b"", b"\0" * 1000, b"\x0a\xff\xff\xff\xff\x0f", bytes(range(256)) * 4])
def test_vocabularies_that_are_none(own, content):
    (own / "tokenizer.model").write_bytes(content)
    refused(own, r"tokenizer\.model: not a sentencepiece model")


def test_a_vocabulary_may_not_be_large_without_end(own):
    os.truncate(own / "tokenizer.model", GB)
    refused(own, "more than 67108864 bytes")


@pytest.mark.parametrize("name", ["/etc/passwd", "..", "", "a/b", "x\0y", "\x1b[2J", "x" * 5000])
def test_shards_are_plain_names(own, name):
    (own / "model.safetensors").unlink()
    (own / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    refused(own, "is not a plain file name")


# safetensors


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def tensor(shape, start=0, end=8, dtype="F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


_A = b'"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
TWICE = b"{" + _A + b", " + _A + b"}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (safetensors({}, length=2**63), "header too large"),
        (safetensors({}, length=100), "cannot be read"),
        (safetensors(b'{"a": "' + b"x" * (99 << 20) + b'"}'), "header too large"),
        (safetensors({"a": tensor([2]), "b": tensor([2])}, bytes(8)), "invalid offset"),
        (safetensors({"a": tensor([2])}, bytes(4)), "not fully covered"),
        (safetensors({"a": tensor([2])}, bytes(40)), "not fully covered"),
        (safetensors({"a": tensor([2**62, 8])}, bytes(8)), "overflow"),
        (safetensors({"a": tensor([-2])}, bytes(8)), "cannot be read"),
        (safetensors({"a": tensor([math.nan])}, bytes(8)), "cannot be read"),
        (safetensors(TWICE, bytes(8)), "a name is there twice"),
        (safetensors(b"[" * 100_000), "cannot be read"),
        (safetensors({"a": tensor([2], dtype="\x1b[2J")}, bytes(8)), r"cannot be read \(.*\\x1b\[2J"),
        (safetensors({"a": tensor([8], dtype="F8_E4M3")}, bytes(8)), "stored as F8_E4M3"),
        (safetensors({"a": tensor([0, 2**60], end=0)}), "is not from 1 to 1;|do not fit the model"),
        (safetensors({f"k{i:06d}": tensor([0], end=0) for i in range(50_000)}), "do not fit the model"),
    ],
    ids=range(16),
)
def test_safetensors_that_lie(own, content, words):
    (own / "model.safetensors").write_bytes(content)
    refused(own, words)


def test_a_key_cannot_write_on_the_terminal(own):
    state = load_file(own / "model.safetensors")
    save_file(state | {"\x1b[2J\nerror: all is well": torch.zeros(1)}, own / "model.safetensors")
    assert "unknown: \\x1b[2J\\nerror: all is well [1]" in refused(own, "1 keys").message


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("/dev/zero"), os.mkfifo, Path.mkdir])
def test_what_is_no_file_is_no_weights(own, make):
    (own / "model.safetensors").unlink()
    make(own / "model.safetensors")
    refused(own, "no weights")


# Pickles


class Evil:
    """Touch a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def repack(path: Path, *, data: bytes | None = None, method: int = zipfile.ZIP_STORED) -> None:
    """Write an archive of torch.save again, with another pickle or packed."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, data if data is not None and name.endswith("data.pkl") else content)


@pytest.mark.parametrize("wrap", ["plain", "archive", "deep"])
def test_code_is_never_run(foreign, tmp_path, wrap):
    owned, shard = tmp_path / "owned", foreign / SHARD
    if wrap == "plain":
        shard.write_bytes(pickle.dumps({"x": Evil(owned)}))
    elif wrap == "archive":
        torch.save({"x": Evil(owned)}, shard)
    else:
        repack(shard, data=pickle.dumps([[[{"x": (Evil(owned),)}]]], protocol=2))
    error = refused(foreign, "not a file of plain tensors")
    assert "which gmcli never runs" in error.hint
    if wrap != "plain":
        assert "it asks for posix.system" in error.message
    # torch's own message recommends to read it with its code.
    assert "weights_only" not in error.message
    assert not owned.exists()
    # The same bytes do run code where they are trusted: the test would notice.
    content = shard.read_bytes() if wrap == "plain" else zipfile.ZipFile(shard).read(pickle_name(shard))
    pickle.load(io.BytesIO(content))
    assert owned.exists()


def pickle_name(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return next(name for name in archive.namelist() if name.endswith("data.pkl"))


def with_bias(shard: Path, value: torch.Tensor) -> None:
    state = torch.load(shard, weights_only=True)
    torch.save({**state, BIAS: value}, shard)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p.write_bytes(b""), "not a file of plain tensors"),
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "not a file of plain tensors"),
        (lambda p: torch.save({"x": torch.zeros(3)}, p, _use_new_zipfile_serialization=False), "write zip archives"),
        (lambda p: repack(p, method=zipfile.ZIP_DEFLATED), "it is packed"),
        (
            lambda p: repack(p, data=b"\x80\x02" + b"N0" * (30 << 20) + b"}.", method=zipfile.ZIP_DEFLATED),
            "it is packed",
        ),
        (lambda p: repack(p, data=b"\x80\x02" + b"N0" * (33 << 20) + b"}."), "missing or too long"),
        (
            lambda p: repack(p, data=b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."),
            "dictionary of plain tensors",
        ),
        (lambda p: repack(p, data=b"\x80\x02a."), "not a file of plain tensors"),
        (lambda p: with_bias(p, torch.eye(256).to_sparse()), "dictionary of plain tensors"),
        (lambda p: with_bias(p, torch.empty(256, device="meta")), "dictionary of plain tensors"),
        (lambda p: with_bias(p, torch.zeros(1).expand(10**12)), "dictionary of plain tensors"),
        (lambda p: torch.save({"x": 3}, p), "dictionary of plain tensors"),
        (lambda p: torch.save([torch.zeros(3)], p), "dictionary of plain tensors"),
        (lambda p: torch.save({f"k{i}": BIG[:] for i in range(4)}, p), "claims to hold"),
    ],
    ids=range(14),
)
def test_pickles_that_lie(foreign, make, words):
    make(foreign / SHARD)
    refused(foreign, words)


BIG = torch.zeros(100_000)


def test_torchscript_is_not_run(foreign):
    with zipfile.ZipFile(foreign / SHARD, "a") as archive:
        archive.writestr(pickle_name(foreign / SHARD).replace("data.pkl", "constants.pkl"), b"\x80\x02).")
    refused(foreign, "TorchScript")


def test_an_old_torch_reads_no_pickle(foreign, own, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    for version in ("2.9.1", "2.9.0+cu130", "1.13.0"):
        monkeypatch.setattr(torch, "__version__", version)
        error = refused(foreign, f"torch {version.replace('+', '.')} does not read .bin files safely")
        assert "CVE-2026-24747" in error.message
        assert "2.10" in error.hint
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    assert load_checkpoint(str(own))
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    assert load_checkpoint(str(foreign))


def test_tied_weights_are_not_taken_for_a_lie(tmp_path):
    torch.save({"a": BIG, "b": BIG}, tmp_path / "x.bin")
    assert [(name, tuple(t.shape)) for name, t in weights.read_tensors(tmp_path / "x.bin")] == [
        ("a", (100_000,)),
        ("b", (100_000,)),
    ]


# LoRA


@pytest.fixture
def adapter(own, tmp_path) -> Path:
    """The folder of a stage that changed one weight by LoRA."""
    files = locate_checkpoint(str(own))
    config = load_checkpoint(files).model.config
    folder = tmp_path / "stage"
    (folder / "last").mkdir(parents=True)
    added = json.loads((own / "added_tokens.json").read_text())
    (folder / ADAPTER).write_text(json.dumps(adapter_record(config, added, base=fingerprint(files), r=2, alpha=4)))
    hidden = config.llm.hidden_size
    halves(folder, (2, hidden), (hidden, 2))
    return folder


def halves(folder: Path, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    layer = "mora.language_model.model.layers.0.self_attn.q_proj.lora_"
    state = {f"{layer}A.default.weight": torch.ones(a), f"{layer}B.default.weight": torch.ones(b)}
    save_file(state, folder / "last" / "model.safetensors")


def merge(own: Path, adapter: Path, tmp_path: Path) -> None:
    convert(locate_checkpoint(str(own)), tmp_path / "merged", adapter=adapter)


def test_an_undamaged_adapter_is_merged(own, adapter, tmp_path):
    merge(own, adapter, tmp_path)
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    before, after = (load_file(f / "model.safetensors")[name] for f in (own, tmp_path / "merged"))
    assert torch.allclose(after, before + 4.0)  # two ones times one, twice: alpha / r is 2


@pytest.mark.parametrize(("a", "b"), [((1, 10**6), (10**6, 1)), ((2, 64), (64, 3)), ((2, 64, 1), (64, 2))])
def test_small_halves_of_a_huge_product(own, adapter, tmp_path, a, b):
    halves(adapter, a, b)
    with pytest.raises(CheckpointError, match="LoRA of another shape"):
        merge(own, adapter, tmp_path)


@pytest.mark.parametrize(
    ("names", "value"),
    [
        ("lora", None),
        ("lora.r", 0),
        ("lora.alpha", 1e308),
        ("base", 3),
        ("config", []),
        ("added_tokens", {"[SEG]": "x"}),
        ("config.llm.num_hidden_layers", 10**7),
        ("config.sam.num_heads", 0),
        ("base", "0" * 64),
    ],
)
def test_adapters_that_are_none(own, adapter, tmp_path, names, value):
    edit(adapter / ADAPTER, *names.split("."), value=value)
    with pytest.raises(CheckpointError) as caught:
        merge(own, adapter, tmp_path)
    assert caught.value.hint
    assert not (tmp_path / "merged").exists()


def test_half_an_adapter_is_none(own, adapter, tmp_path):
    state = load_file(adapter / "last" / "model.safetensors")
    save_file({k: v for k, v in state.items() if "lora_A" in k}, adapter / "last" / "model.safetensors")
    with pytest.raises(CheckpointError, match="is missing"):
        merge(own, adapter, tmp_path)


# As users see it


def test_the_command_line_says_it_in_a_line_with_a_remedy(foreign, tmp_path):
    torch.save({"x": Evil(tmp_path / "owned")}, foreign / SHARD)
    result = CliRunner().invoke(cli, ["convert", str(foreign), str(tmp_path / "out")])
    assert result.exit_code == 5
    assert [line.split(":")[0] for line in result.output.splitlines()] == ["error", "hint"]
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "out").exists()
