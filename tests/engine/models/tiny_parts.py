"""Parts of tiny pipelines: tokenizers made here, and text encoders and autoencoders with random weights."""

from __future__ import annotations

from diffusers import AutoencoderKL
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast, T5Config, T5EncoderModel

WORDS = [
    "<pad>", "<unk>", "<start>", "<end>", "a", "the", "red", "green", "blue", "circle", "square", "star", "of", "left",
    "above", "large", "on", "white",
]  # fmt: skip


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Words by number. The template says what is put around a text: "<start> $A" as Gemma does, "$A <end>" as T5."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(word, vocabulary[word]) for word in ("<start>", "<end>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>",
        model_max_length=2048, padding_side="right",
    )  # fmt: skip


def t5(width: int) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=32, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).eval()


def gemma(width: int) -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=32, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return Gemma2Model(config).eval()


def autoencoder(num_halvings: int = 1) -> AutoencoderKL:
    """4 channels of latents, each a square of 2^num_halvings pixels a side."""
    blocks = num_halvings + 1
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8,) * blocks, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1, scaling_factor=1.3, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip
