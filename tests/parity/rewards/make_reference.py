"""Scores small random-weight copies of the original reward models with the original code: reference.json beside this.

It needs an environment of its own (Python 3.11), since the originals want old libraries:

    pip install --no-deps hpsv2==1.2.0 open_clip_torch==3.3.0 image-reward==1.5 clip-anytorch==2.6.0 \\
        transformers==4.30.2 tokenizers==0.13.3 huggingface_hub==0.17.3 timm==0.6.13 fairscale==0.4.13 \\
        einops==0.8.2 ftfy==6.3.1 wcwidth==0.9.4 torchvision==0.28.0
    pip install torch==2.13.0 numpy==2.4.6 pillow==13.0.0 regex requests tqdm pyyaml filelock packaging safetensors

    python tests/parity/rewards/make_reference.py

What is not as published, and why:
- hpsv2's wheel lacks its vocabulary file: it is given a small one, the first merges of open_clip's. Its model is its
  own class at a smaller size; scoring is its `score`, which loads a checkpoint file.
- ImageReward's image encoder and the heads have sizes written into the code: the same classes are put in with smaller
  ones. Its tokenizer, fetched from a hub, is made from a small vocabulary instead.
- Packages' own `__init__` of training code, `clint` and `pkg_resources` are stood in for by empty modules. Operators of
  torchvision's library that no transform uses are declared and not loaded, so that any build of torch will do.
- PickScore has no package: its score is the code on its model card, over transformers 4.30.
"""

from __future__ import annotations

import functools
import gzip
import importlib
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import packaging.version
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.parity.rewards.inputs import BERT_VOCABULARY, FOLDER, PROMPTS, UNMENDED, clip_vocabulary, images, weights

NUM_MERGES = 300
EVERY = 1009  # pixel values that are kept of the photograph as each original prepares it at 224 pixels
PACKAGES = ("hpsv2", "open_clip_torch", "image-reward", "clip-anytorch", "transformers", "timm", "torchvision", "torch")


def declare_operators() -> Any:
    """Torchvision registers shapes for operators of its library, which need not be there for transforms."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
        for operator in (name, f"_{name}_backward"):
            library.define(f"{operator}(Tensor input) -> Tensor")
    return library


def empty_modules(*names: str) -> None:
    """Modules that are imported and not used; of a package, one that still finds what lies within."""
    for name in names:
        module = types.ModuleType(name)
        root, _, rest = name.partition(".")
        found = importlib.util.find_spec(root) if root not in sys.modules else None
        if root in sys.modules and hasattr(sys.modules[root], "__path__"):
            module.__path__ = [str(Path(sys.modules[root].__path__[0], *rest.split(".")))]
        elif found and found.submodule_search_locations:
            module.__path__ = list(found.submodule_search_locations)
        sys.modules[name] = module


LIBRARY = declare_operators()
empty_modules("hpsv2", "ImageReward", "ImageReward.models", "clint", "clint.textui", "pkg_resources")
sys.modules["clint.textui"].progress = None
sys.modules["pkg_resources"].packaging = packaging

PUBLISHED_BPE = Path(importlib.util.find_spec("open_clip").origin).parent / "bpe_simple_vocab_16e6.txt.gz"
MERGES = [
    line.split()
    for line in gzip.decompress(PUBLISHED_BPE.read_bytes()).decode().split("\n")[1 : NUM_MERGES + 1]
]
VOCABULARY = clip_vocabulary(MERGES)
SCRATCH = Path(tempfile.mkdtemp())
BPE = SCRATCH / "bpe.txt.gz"
with gzip.open(BPE, "wt", encoding="utf-8") as stream:
    stream.write("\n".join(["#version", *(" ".join(pair) for pair in MERGES)]))


def seeded(model: torch.nn.Module, seed: int) -> dict[str, list[int]]:
    """Give a model its random weights; returns their shapes."""
    shapes = {
        name: list(value.shape) for name, value in model.state_dict().items()
        if value.is_floating_point() and not name.endswith("attn_mask")
    }  # fmt: skip
    model.load_state_dict(weights(shapes, seed), strict=False)
    model.eval()
    return shapes


def scores(score: Any) -> list[list[float]]:
    """What `score(PIL image, prompt)` says of every image for its prompt, by batch."""
    with torch.no_grad():
        return [
            [float(score(Image.fromarray(image), prompt)) for image, prompt in zip(batch, PROMPTS, strict=True)]
            for batch in images()
        ]


def mended_scores(score: Any) -> list[float]:
    """What `score(PIL image, prompt)` says of the photograph for each prompt that wants mending."""
    photograph = Image.fromarray(images()[0][0])
    with torch.no_grad():
        return [float(score(photograph, prompt)) for prompt in UNMENDED]


def pixels(transform: Any) -> dict[str, Any]:
    """Some pixel values of the photograph as an original prepares it."""
    values = transform(Image.fromarray(images()[0][0]))
    return {"shape": list(values.shape), "every": EVERY, "values": values.flatten()[::EVERY].tolist()}


VISION = {"layers": 2, "width": 64, "patch_size": 10, "image_size": 30, "head_width": 16}
TEXT = {"context_length": 77, "vocab_size": len(VOCABULARY), "width": 48, "heads": 3, "layers": 2}


def hpsv2_case() -> dict[str, Any]:
    """HPSv2's own CLIP, tokenizer, transform and `score`."""
    original_open = gzip.open
    gzip.open = lambda *args, **kwargs: original_open(BPE)  # its vocabulary file is absent from the wheel
    from hpsv2 import img_score
    from hpsv2.src.open_clip.model import CLIP
    from hpsv2.src.open_clip.transform import image_transform

    gzip.open = original_open
    model = CLIP(32, VISION, TEXT, output_dict=True)
    shapes = seeded(model, 1)
    file = SCRATCH / "hps.pt"
    torch.save({"state_dict": model.state_dict()}, file)
    img_score.model_dict.update(model=model, preprocess_val=image_transform(30, is_train=False))
    return {
        "seed": 1, "shapes": shapes, "config": {"model_cfg": {"vision_cfg": VISION, "text_cfg": TEXT}},
        "scores": scores(lambda image, prompt: img_score.score(image, prompt, cp=str(file))[0]),
        "mended": mended_scores(lambda image, prompt: img_score.score(image, prompt, cp=str(file))[0]),
        "pixels": pixels(image_transform(224, is_train=False)),
    }  # fmt: skip


def open_clip_case(resize_mode: str, seed: int) -> dict[str, Any]:
    """open_clip's CLIP with QuickGELU, as DFN's is, and its transform and tokenizer."""
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip.transform import PreprocessCfg, image_transform_v2

    model = CLIP(32, VISION, TEXT, quick_gelu=True)
    shapes = seeded(model, seed)
    tokenize = SimpleTokenizer(str(BPE))
    prepare = {size: image_transform_v2(PreprocessCfg(size=size, resize_mode=resize_mode), False) for size in (30, 224)}

    def score(image: Image.Image, prompt: str) -> float:
        seen = model.encode_image(prepare[30](image)[None], normalize=True)
        return float((seen @ model.encode_text(tokenize([prompt]), normalize=True).T)[0, 0])

    config = {
        "model_cfg": {"embed_dim": 32, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
        "preprocess_cfg": {"resize_mode": resize_mode, "interpolation": "bicubic"},
    }
    return {
        "seed": seed, "shapes": shapes, "config": config, "scores": scores(score), "mended": mended_scores(score),
        "pixels": pixels(prepare[224]),
    }  # fmt: skip


def pickscore_case() -> dict[str, Any]:
    """The model card's code over transformers' CLIPModel and CLIPProcessor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    (SCRATCH / "vocab.json").write_text(json.dumps(VOCABULARY))
    (SCRATCH / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in MERGES)]))
    tokenizer = CLIPTokenizer(str(SCRATCH / "vocab.json"), str(SCRATCH / "merges.txt"))
    vision = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
              "image_size": 30, "patch_size": 10, "projection_dim": 32, "hidden_act": "gelu"}  # fmt: skip
    text = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 3,
            "vocab_size": len(VOCABULARY), "max_position_embeddings": 77, "projection_dim": 32, "hidden_act": "gelu",
            "bos_token_id": len(VOCABULARY) - 2, "eos_token_id": len(VOCABULARY) - 1}  # fmt: skip
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=32)
    model = CLIPModel(config)
    shapes = seeded(model, 4)

    def processor(size: int) -> Any:
        crop = {"height": size, "width": size}
        return CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": size}, crop_size=crop), tokenizer)

    small, usual = processor(30), processor(224)

    def score(image: Image.Image, prompt: str) -> float:
        seen = small(images=image, padding=True, truncation=True, max_length=77, return_tensors="pt")
        read = small(text=prompt, padding=True, truncation=True, max_length=77, return_tensors="pt")
        image_embs = model.get_image_features(**seen)
        image_embs = image_embs / torch.norm(image_embs, dim=-1, keepdim=True)
        text_embs = model.get_text_features(**read)
        text_embs = text_embs / torch.norm(text_embs, dim=-1, keepdim=True)
        return float((model.logit_scale.exp() * (text_embs @ image_embs.T)[0])[0])

    return {
        "seed": 4, "shapes": shapes, "config": {"vision_config": vision, "text_config": text, "projection_dim": 32},
        "scores": scores(score),
        "pixels": pixels(lambda image: usual(images=image, return_tensors="pt")["pixel_values"][0]),
    }  # fmt: skip


def image_reward_case() -> dict[str, Any]:
    """ImageReward's own classes, transform and `score`."""
    from ImageReward.models.BLIP import blip, blip_pretrain
    from ImageReward.models.BLIP.vit import VisionTransformer
    from transformers import BertTokenizer

    original = importlib.import_module("ImageReward.ImageReward")
    (SCRATCH / "vocab.txt").write_text("\n".join(BERT_VOCABULARY) + "\n")
    tokenizer = BertTokenizer(str(SCRATCH / "vocab.txt"))
    blip.BertTokenizer = types.SimpleNamespace(from_pretrained=lambda name: tokenizer)
    blip_pretrain.create_vit = lambda kind, image_size, *rest: (
        VisionTransformer(img_size=image_size, patch_size=16, embed_dim=64, depth=2, num_heads=1), 64)  # fmt: skip
    original.MLP = functools.partial(lambda head, width: head(96), original.MLP)
    config = {
        "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": 96, "initializer_range": 0.02, "intermediate_size": 160,
        "layer_norm_eps": 1e-12, "max_position_embeddings": 64, "model_type": "bert", "num_attention_heads": 4,
        "num_hidden_layers": 2, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": len(BERT_VOCABULARY) + 2,
        "encoder_width": 64, "add_cross_attention": True,
    }  # fmt: skip
    (SCRATCH / "med_config.json").write_text(json.dumps(config))
    model = original.ImageReward(med_config=str(SCRATCH / "med_config.json"))
    shapes = seeded(model, 5)
    return {
        "seed": 5, "shapes": shapes, "config": config,
        "scores": scores(lambda image, prompt: model.score(prompt, image)), "pixels": pixels(model.preprocess),
    }  # fmt: skip


def aesthetic_case() -> dict[str, Any]:
    """OpenAI's CLIP with the aesthetic predictor as ImageReward packs it; images are files there."""
    import clip
    from clip.clip import _transform

    original = importlib.import_module("ImageReward.models.AestheticScore")
    sizes = {"embed_dim": 32, "image_resolution": 30, "vision_layers": 2, "vision_width": 64, "vision_patch_size": 10,
             "context_length": 77, "vocab_size": len(VOCABULARY), "transformer_width": 64, "transformer_heads": 2,
             "transformer_layers": 1}  # fmt: skip
    encoder = clip.model.CLIP(**sizes)
    clip_shapes = seeded(encoder, 6)
    clip.load = lambda *args, **kwargs: (encoder, _transform(30))
    original.MLP = functools.partial(lambda head, width: head(32), original.MLP)
    model = original.AestheticScore(str(SCRATCH)).eval()
    head_shapes = seeded(model.mlp, 7)

    def score(image: Image.Image, prompt: str) -> float:
        image.save(SCRATCH / "image.png")
        return float(model.score(prompt, str(SCRATCH / "image.png")))

    return {
        "seed": 7, "shapes": head_shapes, "clip": {"seed": 6, "shapes": clip_shapes}, "scores": scores(score),
        "pixels": pixels(_transform(224)),
    }  # fmt: skip


def main() -> None:
    """Write every case to reference.json."""
    torch.set_num_threads(1)
    reference = {
        "made_by": "tests/parity/rewards/make_reference.py",
        "with": {name: importlib.metadata.version(name) for name in PACKAGES},
        "merges": MERGES,
        "cases": {
            "hpsv2": hpsv2_case(), "clip_score_squash": open_clip_case("squash", 2),
            "clip_score_shortest": open_clip_case("shortest", 3), "pickscore": pickscore_case(),
            "image_reward": image_reward_case(), "aesthetic": aesthetic_case(),
        },
    }  # fmt: skip
    (FOLDER / "reference.json").write_text(json.dumps(reference, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
