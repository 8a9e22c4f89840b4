"""Build SAM from segment-anything's modules and decode (frame, prompt) pairs with it."""

from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn
from torch.nn import functional

from gmcli.model.config import SamSizes


class Sam(nn.Module):
    """Hold SAM's three modules under their published names.

    Source: segment_anything/build_sam.py.
    """

    def __init__(self, sizes: SamSizes) -> None:
        super().__init__()
        grid = sizes.image_size // sizes.patch_size
        self.sizes = sizes
        self.image_encoder = ImageEncoderViT(
            img_size=sizes.image_size,
            patch_size=sizes.patch_size,
            embed_dim=sizes.embed_dim,
            depth=sizes.depth,
            num_heads=sizes.num_heads,
            mlp_ratio=(sizes.mlp_dim + 0.5) / sizes.embed_dim,  # it is multiplied back and floored
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            global_attn_indexes=sizes.global_attn_indexes,
            window_size=sizes.window_size,
            out_chans=sizes.prompt_dim,
        )
        self.prompt_encoder = PromptEncoder(
            embed_dim=sizes.prompt_dim,
            image_embedding_size=(grid, grid),
            input_image_size=(sizes.image_size, sizes.image_size),
            mask_in_chans=sizes.mask_in_chans,
        )
        self.mask_decoder = MaskDecoder(
            num_multimask_outputs=sizes.num_multimask_outputs,
            transformer=TwoWayTransformer(
                depth=sizes.decoder_depth,
                embedding_dim=sizes.prompt_dim,
                mlp_dim=sizes.decoder_mlp_dim,
                num_heads=sizes.decoder_heads,
            ),
            transformer_dim=sizes.prompt_dim,
            iou_head_depth=sizes.iou_head_depth,
            iou_head_hidden_dim=sizes.iou_head_hidden_dim,
        )

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode preprocessed frames. pixels: [B,3,S,S]. Returns image_embeddings [B,C,S/16,S/16]."""
        embeddings: torch.Tensor = self.image_encoder(pixels)
        return embeddings

    def dense_pe(self) -> torch.Tensor:
        """Return the positional encoding of the image grid, [1,C,h,w], in float32: bf16 coordinates would be coarse."""
        encoding: torch.Tensor = self.prompt_encoder.get_dense_pe()
        return encoding

    def decode_masks(
        self, image_embeddings: torch.Tensor, prompts: torch.Tensor, image_pe: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode B pairs of one frame and one prompt; see decode_pairs."""
        no_mask = self.prompt_encoder.no_mask_embed.weight
        return decode_pairs(self.mask_decoder, no_mask, image_embeddings, prompts, image_pe)


def decode_pairs(
    decoder: MaskDecoder,
    no_mask: torch.Tensor,
    image_embeddings: torch.Tensor,
    prompts: torch.Tensor,
    image_pe: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode B pairs of one frame and one prompt: the boundary that backends compile, tensors only and no branches.

    no_mask: [1,C], the embedding that stands for "no mask given". image_embeddings: [B,C,h,w]. prompts: [B,C], one sparse
    token each. image_pe: [1,C,h,w]. Returns low_res_logits [B,1,4h,4w] of mask token 0 and iou_predictions [B,1].

    segment-anything's own forward pairs every prompt with one image and computes all four masks; this pairs them
    row by row and computes the one that is used.
    Source: segment_anything/modeling/mask_decoder.py, predict_masks.
    """
    batch, channels, h, w = image_embeddings.shape
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(batch, -1, -1), prompts.unsqueeze(1)], dim=1)
    dense = no_mask.to(image_embeddings.dtype).view(1, channels, 1, 1)
    position = image_pe.to(image_embeddings.dtype).expand(batch, -1, -1, -1)
    states, source = decoder.transformer(image_embeddings + dense, position, tokens)
    upscaled = decoder.output_upscaling(source.transpose(1, 2).reshape(batch, channels, h, w))
    hyper = decoder.output_hypernetworks_mlps[0](states[:, 1])
    masks = torch.einsum("bc,bchw->bhw", hyper, upscaled).unsqueeze(1)
    iou: torch.Tensor = decoder.iou_prediction_head(states[:, 0])[:, :1]
    return masks, iou


def postprocess_masks(
    low_res_logits: torch.Tensor, resized: tuple[int, int], original: tuple[int, int], image_size: int
) -> torch.Tensor:
    """Bring mask logits to the frame's own size, in float32: upscale, crop the padding away, resize.

    low_res_logits: [B,1,h,w]. resized: (H, W) inside the padded square. original: the frame's (H, W).
    Returns float32 [B,H,W]; a pixel belongs to the mask where it is > 0.
    Source: segment_anything/modeling/sam.py, postprocess_masks.
    """
    square = functional.interpolate(low_res_logits.float(), (image_size, image_size), mode="bilinear")
    crop = square[..., : resized[0], : resized[1]]
    return functional.interpolate(crop, original, mode="bilinear")[:, 0]
