import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gmcli.checkpoints.convert import convert
from gmcli.checkpoints.load import choose_attention, load_checkpoint
from gmcli.checkpoints.locate import fingerprint, locate_checkpoint
from gmcli.errors import CheckpointError, EnvironmentProblem, UsageError
from tests.random_tiny import RANDOM_TINY


@pytest.fixture
def copy(original_folder, tmp_path) -> Path:
    """A copy of the original-layout checkpoint and its vision tower, to be damaged."""
    shutil.copytree(original_folder.parent, tmp_path / "c")
    return tmp_path / "c" / "tiny-mora"


def edit(path: Path, **changes) -> None:
    value = json.loads(path.read_text())
    for name, change in changes.items():
        if change is None:
            value.pop(name, None)
        else:
            value[name] = change
    path.write_text(json.dumps(value))


def same_weights(a, b) -> bool:
    first, second = a.model.state_dict(), b.model.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_original_layout_loads_as_it_is(original_folder, checkpoint):
    loaded = load_checkpoint(str(original_folder))
    assert same_weights(loaded, checkpoint)
    assert loaded.model.config == checkpoint.model.config
    assert loaded.special == checkpoint.special


def test_the_published_golden_folder_loads_as_it_is(checkpoint):
    folder = Path(__file__).resolve().parents[3] / "shared/goldens/tiny-mora"
    if not folder.is_dir():
        pytest.skip("the folder of goldens is not here")
    assert same_weights(load_checkpoint(str(folder)), checkpoint)


def test_single_bin_file_and_single_safetensors_file_load(copy, checkpoint):
    shards = sorted(copy.glob("*.bin"))
    state = {k: v for shard in shards for k, v in torch.load(shard, weights_only=True).items()}
    for shard in shards:
        shard.unlink()
    (copy / "pytorch_model.bin.index.json").unlink()
    torch.save(state, copy / "pytorch_model.bin")
    assert same_weights(load_checkpoint(str(copy)), checkpoint)
    (copy / "pytorch_model.bin").unlink()
    save_file({k: v.contiguous() for k, v in state.items()}, copy / "model.safetensors")
    assert same_weights(load_checkpoint(str(copy)), checkpoint)


def test_a_full_clip_serves_as_vision_tower(copy, checkpoint):
    tower = copy.parent / "tiny-clip"
    state = torch.load(tower / "pytorch_model.bin", weights_only=True)
    state |= {"text_model.final_layer_norm.weight": torch.ones(3), "logit_scale": torch.ones(())}
    torch.save(state, tower / "pytorch_model.bin")
    values = json.loads((tower / "config.json").read_text())
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": values}))
    assert same_weights(load_checkpoint(str(copy)), checkpoint)


def test_convert_keeps_every_value_and_type(copy, tmp_path, checkpoint):
    files = locate_checkpoint(str(copy))
    count = convert(files, tmp_path / "own")
    stored = load_file(tmp_path / "own" / "model.safetensors")
    assert len(stored) == count == len(checkpoint.model.state_dict())
    assert stored["language_model.lm_head.weight"].dtype == torch.bfloat16
    assert stored["visual_model.mask_decoder.iou_token.weight"].dtype == torch.float32
    assert same_weights(load_checkpoint(str(tmp_path / "own")), checkpoint)
    card = (tmp_path / "own" / "README.md").read_text()
    assert fingerprint(files) in card
    convert(files, tmp_path / "small", "bf16")
    assert {t.dtype for t in load_file(tmp_path / "small" / "model.safetensors").values()} == {torch.bfloat16}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_convert_refuses_an_existing_destination(original_folder, tmp_path):
    with pytest.raises(UsageError, match="exists already"):
        convert(locate_checkpoint(str(original_folder)), tmp_path)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_reduced_types_leave_the_prompt_encoder_in_float32(dtype):
    state = load_checkpoint(RANDOM_TINY, dtype=dtype).model.state_dict()
    types = {k.split(".")[0] + "." + k.split(".")[1]: v.dtype for k, v in state.items()}
    reduced = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert types.pop("visual_model.prompt_encoder") == torch.float32
    assert set(types.values()) == {reduced}


def test_every_wrong_key_is_named(copy):
    shard = copy / "pytorch_model-00002-of-00002.bin"
    state = torch.load(shard, weights_only=True)
    del state["model.visual_model.prompt_encoder.no_mask_embed.weight"]
    state["model.surprise"] = torch.zeros(2)
    state["model.text_hidden_fcs.0.2.bias"] = torch.zeros(7)
    torch.save(state, shard)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(copy))
    for line in (
        "3 keys",
        "missing: visual_model.prompt_encoder.no_mask_embed.weight [1, 256]",
        "unknown: model.surprise [2]",
        "wrong shape: text_hidden_fcs.0.2.bias is [7], the model needs [256]",
    ):
        assert line in caught.value.message


def test_quantised_weights_are_refused(copy):
    shard = copy / "pytorch_model-00002-of-00002.bin"
    state = torch.load(shard, weights_only=True)
    state["model.text_hidden_fcs.0.2.bias"] = torch.zeros(256, dtype=torch.int8)
    torch.save(state, shard)
    with pytest.raises(CheckpointError, match=r"stored as torch\.int8"):
        load_checkpoint(str(copy))
    for path in (*copy.glob("*.bin"), copy / "pytorch_model.bin.index.json"):
        path.unlink()
    save_file({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match="stored as I8"):
        load_checkpoint(str(copy))


def test_a_pickle_with_code_is_refused_and_not_run(copy, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "owned",)

    with (copy / "pytorch_model-00002-of-00002.bin").open("wb") as file:
        pickle.dump({"x": Evil()}, file)
    with pytest.raises(CheckpointError, match="not a file of plain tensors"):
        load_checkpoint(str(copy))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["pytorch_model-00001-of-00002.bin", "tokenizer.model"])
def test_truncated_files_are_named(copy, name):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_checkpoint(str(copy))


def test_truncated_safetensors_is_named(tmp_path, checkpoint):
    shutil.copytree(checkpoint.files.path, tmp_path / "own")
    file = tmp_path / "own" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load_checkpoint(str(tmp_path / "own"))


def test_what_is_missing_is_named(copy):
    (copy / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match=r"shards are missing: pytorch_model-00002-of-00002\.bin"):
        locate_checkpoint(str(copy))
    for name in ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"):
        (copy / name).unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        locate_checkpoint(str(copy))
    (copy / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is missing"):
        locate_checkpoint(str(copy))
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        locate_checkpoint(str(copy))


def test_a_vocabulary_without_seg_is_refused(copy):
    (copy / "added_tokens.json").write_text('{"<im_start>": 2001, "<im_end>": 2002}')
    with pytest.raises(CheckpointError, match=r"no \[SEG\] token"):
        locate_checkpoint(str(copy))


def test_a_vocabulary_beyond_the_embedding_table_is_refused(copy):
    edit(copy / "added_tokens.json", **{"[MORE]": 2004})
    with pytest.raises(CheckpointError, match=r"2005 ids, config\.json says vocab_size 2004"):
        locate_checkpoint(str(copy))


def test_added_tokens_are_read_from_a_newer_tokenizer_file_too(copy, checkpoint):
    added = json.loads((copy / "added_tokens.json").read_text())
    (copy / "added_tokens.json").unlink()
    decoder = {str(i): {"content": t} for t, i in added.items()} | {"1": {"content": "<s>"}}
    (copy / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    assert load_checkpoint(str(copy)).special == checkpoint.special


@pytest.mark.parametrize("bad", ["not json", "[]", '{"a": 1}', "{" * 100_000])
def test_a_wrong_config_is_refused(copy, bad):
    (copy / "config.json").write_text(bad)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        locate_checkpoint(str(copy))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_scaling", {"type": "linear", "factor": 2}),
        ("mm_vision_select_feature", "cls_patch"),
        ("hidden_act", "gelu"),
        ("mm_projector_type", "mlp2x_gelu"),
    ],
)
def test_what_would_change_the_forward_pass_is_refused(copy, field, value):
    edit(copy / "config.json", **{field: value})
    with pytest.raises(CheckpointError, match=field):
        locate_checkpoint(str(copy))


def test_own_configuration_errors_are_listed(tmp_path, checkpoint):
    shutil.copytree(checkpoint.files.path, tmp_path / "own")
    edit(tmp_path / "own" / "config.json", visual_tokens="rubbish", surprise=1, clip=None)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(tmp_path / "own"))
    for part in ("visual_tokens: 'rubbish'", "surprise: unknown field", "clip: expected an object"):
        assert part in caught.value.message
    edit(tmp_path / "own" / "config.json", format="gmcli-mora-99")
    with pytest.raises(CheckpointError, match="gmcli-mora-99"):
        locate_checkpoint(str(tmp_path / "own"))


def test_a_shard_name_cannot_leave_the_folder(copy):
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(CheckpointError, match="not a plain file name"):
        locate_checkpoint(str(copy))


@pytest.mark.parametrize("ref", ["nowhere", "/no/such/folder", "someone/some-model"])
def test_unknown_checkpoints_are_named(ref, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=ref):
        locate_checkpoint(ref)


def test_arguments_that_do_not_apply_are_refused(original_folder):
    for ref in (str(original_folder), "mora-tiny"):
        with pytest.raises(UsageError, match="no revision"):
            locate_checkpoint(ref, revision="main")
    with pytest.raises(UsageError, match="its own vision tower"):
        locate_checkpoint("mora-tiny", vision_tower="x")


def test_a_missing_vision_tower_is_named(copy):
    shutil.rmtree(copy.parent / "tiny-clip")
    with pytest.raises(CheckpointError, match="vision tower was not found") as caught:
        locate_checkpoint(str(copy))
    assert "--vision-tower" in caught.value.hint


def test_hub_names_resolve_through_the_hubs_cache(copy, tmp_path, monkeypatch):
    """A repository laid into the hub's cache by hand is found offline, by name and by revision, and not read for its hash."""
    import hashlib

    own = tmp_path / "own"
    convert(locate_checkpoint(str(copy)), own)
    repository = tmp_path / "hub" / "models--someone--mora"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    (repository / "blobs").mkdir()
    for path in own.iterdir():
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    import huggingface_hub

    original = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **kw: original(name, cache_dir=tmp_path / "hub", **kw),
    )
    files = locate_checkpoint("someone/mora")
    assert files.path.samefile(snapshot)
    assert fingerprint(files) == fingerprint(locate_checkpoint(str(own)))
    assert locate_checkpoint("someone/mora", revision=snapshot.name).path.samefile(snapshot)
    with pytest.raises(CheckpointError, match="someone/mora"):
        locate_checkpoint("someone/mora", revision="v9")


def test_the_fingerprint_follows_content_not_place(original_folder, copy):
    before = fingerprint(locate_checkpoint(str(original_folder)))
    assert fingerprint(locate_checkpoint(str(copy))) == before
    shard = copy / "pytorch_model-00002-of-00002.bin"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    assert fingerprint(locate_checkpoint(str(copy))) != before


def test_attention_falls_back_only_when_not_asked_for():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_attention("auto", cpu, "fp32") == "sdpa"
    assert choose_attention("eager", cpu, "fp32") == "eager"
    with pytest.raises(EnvironmentProblem, match="needs a CUDA device"):
        choose_attention("flash_attention_2", cpu, "fp32")
    with pytest.raises(EnvironmentProblem) as caught:
        choose_attention("flash_attention_2", cuda, "bf16")
    assert caught.value.hint == "pip install 'gmcli[flash]' --no-build-isolation"
