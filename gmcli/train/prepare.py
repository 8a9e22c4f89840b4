"""Turn a loaded checkpoint into the model that a stage of kind `mora` trains: localizer, [LOC] token, prompt, LoRA."""

from dataclasses import dataclass, replace

import torch

from gmcli.checkpoints.load import Checkpoint, special_ids
from gmcli.model.generate import SpecialIds
from gmcli.model.mora import Mora, build_localizer
from gmcli.model.tokenizer import Tokenizer
from gmcli.train.config import MoraOptions
from gmcli.train.lora import add_lora


@dataclass(frozen=True, slots=True)
class Trainable:
    """Hold a model that is ready to be trained, and the vocabulary that goes with it."""

    model: Mora
    tokenizer: Tokenizer
    special: SpecialIds


def prepare(checkpoint: Checkpoint, options: MoraOptions, seed: int) -> Trainable:
    """Change the checkpoint's model as the options say, in place. What is new starts from `seed`.

    A localizer of another number of bins is a new one; one of the same number goes on. [LOC] joins the vocabulary where a
    localizer needs it; its embedding starts as the mean of all.
    """
    torch.manual_seed(seed)
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    changes = {
        name: value
        for name in ("visual_tokens", "conversation", "instruction")
        if (value := getattr(options, name)) is not None
    }
    config = replace(model.config, localizer_bins=options.localizer_bins, **changes)
    if options.localizer_bins != model.config.localizer_bins:
        bins = options.localizer_bins
        model.localizer = build_localizer(config.llm.hidden_size, bins) if bins else None
    if options.localizer_bins and tokenizer.token_id(config.loc_token) is None:
        row = len(tokenizer)
        tokenizer = Tokenizer(checkpoint.files.tokenizer, tokenizer.added | {config.loc_token: row})
        config = replace(config, llm=replace(config.llm, vocab_size=max(config.llm.vocab_size, row + 1)))
        _add_token(model, row)
    model.config = config
    add_lora(
        model,
        r=options.lora_r,
        alpha=options.lora_alpha,
        dropout=options.lora_dropout,
        targets=options.lora_targets,
    )
    return Trainable(model, tokenizer, special_ids(tokenizer, config))


@torch.no_grad()
def _add_token(model: Mora, row: int) -> None:
    """Give a token its row in the embedding table and in lm_head."""
    llama = model.language_model
    means = [table.weight[:row].float().mean(dim=0) for table in (llama.model.embed_tokens, llama.lm_head)]
    if row >= llama.config.vocab_size:
        # Its own way of filling new rows wants the covariance of all the others.
        llama.resize_token_embeddings(row + 1, mean_resizing=False)
    for table, mean in zip((llama.model.embed_tokens, llama.lm_head), means, strict=True):
        table.weight[row] = mean.to(table.weight.dtype)
