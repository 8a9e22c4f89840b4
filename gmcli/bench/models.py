"""Make checkpoints of random weights in any size, that answer every question alike.

The weights are ordinary tensors, and every layer computes as it would with trained ones. That the answer is known comes
from two tables: the embeddings are so large that a position's state stays close to its token's embedding, and the row of
`lm_head` of each token of the answer is the direction of the embedding of the token before it.
"""

import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file

from gmcli.bench.clips import QUESTIONS
from gmcli.bench.options import ANSWERS
from gmcli.bench.published import generate
from gmcli.bench.stopwatch import Stopwatch
from gmcli.checkpoints.convert import write_config
from gmcli.checkpoints.load import DTYPES, Checkpoint
from gmcli.errors import CheckpointError
from gmcli.model.config import ClipSizes, LlamaSizes, MoraConfig, SamSizes
from gmcli.model.mora import build_on_meta
from gmcli.model.prompt import IMAGE, build_prompt, tokenize_prompt
from gmcli.model.tokenizer import Tokenizer

ANSWER_TOKENS = 8

_PIECES = 700
_ADDED = ("<im_start>", "<im_end>", "[SEG]", "[LOC]")
# Learned vectors that stand for something, rather than map it.
_TABLE = re.compile(r"(_tokens?|_embed|class_embedding|point_embeddings\.\d)(\.weight)?$")
# Projections into a residual stream: divided by the root of their number, so that the stream keeps its scale.
_INTO_STREAM = (".o_proj.", ".down_proj.", ".out_proj.", ".fc2.", ".attn.proj.", ".lin2.")


def model_config(size: str) -> MoraConfig:
    """Return the sizes of a model. Source: segment_anything/build_sam.py; the published configs of CLIP ViT-L/14 and LLaMA."""
    match size:
        case "tiny":
            return MoraConfig(
                llm=LlamaSizes(_PIECES + len(_ADDED), 64, 128, 2, 4, 4, 1024, 1e-5),
                clip=ClipSizes(64, 128, 3, 4, image_size=56),
                sam=SamSizes(
                    image_size=128,
                    embed_dim=64,
                    depth=2,
                    num_heads=2,
                    mlp_dim=128,
                    global_attn_indexes=(1,),
                    window_size=4,
                    decoder_mlp_dim=64,
                ),
            )
        case "vit_b-160m":
            return MoraConfig(
                llm=LlamaSizes(32004, 768, 3072, 12, 12, 12, 2048, 1e-5),
                clip=ClipSizes(768, 3072, 12, 12),
                sam=SamSizes(embed_dim=768, depth=12, num_heads=12, mlp_dim=3072, global_attn_indexes=(2, 5, 8, 11)),
            )
        case "vit_h-7b":
            return MoraConfig(
                llm=LlamaSizes(32004, 4096, 11008, 32, 32, 32, 4096, 1e-5),
                clip=ClipSizes(1024, 4096, 24, 16),
                sam=SamSizes(),
            )
    raise ValueError(f"no such size: {size}")


def write_random_checkpoint(
    size: str, folder: Path, answer: str, *, dtype: str = "fp32", device: str | torch.device = "cpu", seed: int = 0
) -> None:
    """Write a checkpoint of random weights into `folder`, which is made; all that loads checkpoints can load it.

    answer: what it says to every question, eight tokens. device: where weights are drawn; equal devices draw equal ones.
    """
    folder.mkdir(parents=True)
    config = model_config(size)
    added = {token: config.llm.vocab_size - len(_ADDED) + i for i, token in enumerate(_ADDED)}
    _write_tokenizer(folder / "tokenizer.model", config)
    (folder / "added_tokens.json").write_text(json.dumps(added) + "\n", encoding="utf-8")
    write_config(folder, config)
    generator = torch.Generator(device).manual_seed(seed)
    state = {
        name: draw_weight(name, like.shape, config, generator).to(DTYPES[dtype])
        for name, like in build_on_meta(config).state_dict().items()
    }
    _teach_answer(state, config, Tokenizer(folder / "tokenizer.model", added), answer)
    # One dtype for all: loading gives each tensor the one that it runs in.
    save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, folder / "model.safetensors")


def draw_weight(name: str, shape: torch.Size, config: MoraConfig, generator: torch.Generator) -> torch.Tensor:
    """Draw one tensor, so that activations keep about unit scale and nothing that could matter is zero.

    segment-anything starts `pos_embed` and `rel_pos` at zero, and most biases: here they are not.
    """
    noise = torch.randn(shape, generator=generator, device=generator.device)
    if "embed_tokens" in name or "positional_encoding" in name:
        return noise
    if "lm_head" in name:
        return noise * 0.02
    if "rel_pos" in name or "pos_embed" in name or "position_embedding" in name:
        return noise * 0.2
    if _TABLE.search(name):
        return noise
    if len(shape) == 1:
        return 1 + noise * 0.1 if name.endswith("weight") else noise * 0.1
    scale = 1 / math.sqrt(math.prod(shape[1:]))
    if any(part in name for part in _INTO_STREAM):
        scale /= math.sqrt(2 * _depth(name, config))
    return noise * scale


def _depth(name: str, config: MoraConfig) -> int:
    if name.startswith("vision_tower."):
        return config.clip.num_hidden_layers
    if name.startswith("language_model."):
        return config.llm.num_hidden_layers
    return config.sam.depth if ".image_encoder." in name else config.sam.decoder_depth


def _teach_answer(state: Mapping[str, torch.Tensor], config: MoraConfig, tokenizer: Tokenizer, answer: str) -> None:
    """Let every token of the answer follow the one before it, and the first one the prompt's last token."""
    _, after = tokenize_prompt(build_prompt(QUESTIONS[0], config), tokenizer)
    ids = [*tokenizer.encode(answer)[1:], tokenizer.eos_id]
    chain = [after[-1], *ids]
    if len(ids) != ANSWER_TOKENS or len(set(chain)) != len(chain):
        raise AssertionError(f"an answer of {ANSWER_TOKENS} different tokens is wanted, not {ids}")
    embeddings = state["language_model.model.embed_tokens.weight"]
    rows = state["language_model.lm_head.weight"]
    for before, token in pairwise(chain):
        rows[token] = embeddings[before] / embeddings[before].norm()


def check_answer(checkpoint: Checkpoint, answer: str, device: torch.device) -> None:
    """Decode greedily for one question and one picture of noise; raise CheckpointError unless the answer is the one taught."""
    want = [*checkpoint.tokenizer.encode(answer)[1:], checkpoint.tokenizer.eos_id]
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    layout, most = checkpoint.model.config.visual_tokens, 2 * ANSWER_TOKENS
    with torch.inference_mode():
        ids, _ = generate(checkpoint, QUESTIONS[-1], [picture], layout, most, Stopwatch(device))
    if ids != want:
        raise CheckpointError(f"the random model answers {checkpoint.tokenizer.decode(ids)!r}, not {answer!r}")


def _write_tokenizer(path: Path, config: MoraConfig) -> None:
    """Train a tokenizer on the prompts: like LLaMA's, it then has about one piece for each of their words."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(config),
        model_writer=model,
        model_type="bpe",
        vocab_size=_PIECES,
        byte_fallback=True,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def _sentences(config: MoraConfig) -> Iterator[str]:
    for question in QUESTIONS:
        text = build_prompt(question, config)
        for token in (IMAGE, *_ADDED):
            text = text.replace(token, " ")
        yield from text.split("\n")
        yield from (answer.replace(" [SEG]", "") for answer in ANSWERS.values())
