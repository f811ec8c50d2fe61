"""A run between iterations: what it holds, how it is made, saved and restored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.optim import Optimizer

from engine.artifacts.checkpoint import Checkpoint, save_checkpoint
from engine.batching import BatchSizes, fixed_size, fixed_sizes
from engine.compilation import compile_blocks
from engine.event_log import checkpoint_saved
from engine.events import Event, Message
from engine.guards import Guards
from engine.memory_advice import in_words
from engine.model_size import read_size
from engine.models import PromptEmbeddings, TextToImage, load_model, model_folder
from engine.models.embedding_cache import EmbeddingCache, cache_root, fingerprint
from engine.models.placement import place, place_transformer
from engine.optimiser import make_optimiser, optimiser_tensors, restore_optimiser
from engine.prompts import RunPrompts, load_prompts, prompts_of_iteration
from engine.ranks import ALONE, Ranks
from engine.rewards import Reward, make_rewards
from engine.sampling.sde import Kernel, make_kernel
from engine.settings import RunSettings
from engine.sharding import shard, whole
from engine.tuning import RunningAverage, Trainable, make_trainable
from engine.versions import versions

Emit = Callable[[Event], None]
Encode = Callable[[Sequence[str]], PromptEmbeddings]

_SECONDS_BETWEEN_WORDS = 5.0


@dataclass
class Run:
    """Everything a run holds between iterations; `step` counts the finished ones, of which `saved_step` are saved.

    average: the weights that are evaluated and exported, where they are averaged. sampler: those that draw the images,
    where another policy than the one in training does (DiffusionNFT). sizes: images at a time, by phase.
    """

    settings: RunSettings
    out: Path
    emit: Emit
    model: TextToImage
    encode: Encode
    device: torch.device
    prompts: RunPrompts
    rewards: dict[str, Reward]
    trainable: Trainable
    optimiser: Optimizer
    kernel: Kernel
    average: RunningAverage | None
    sampler: RunningAverage | None
    counter: ForwardCounter
    sizes: BatchSizes
    guards: Guards
    ranks: Ranks
    step: int = 0
    begun: float = field(default_factory=time.perf_counter)
    first_step: int = 0
    saved_step: int = 0


class ForwardCounter:
    """Counts the transformer's forwards without gradient, an image at a time, as they are made."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        self.count = 0
        transformer.register_forward_hook(self._add)

    def take(self) -> int:
        """The forwards since the last time, and start again."""
        count, self.count = self.count, 0
        return count

    def _add(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            self.count += len(output[0])


def prepare(
    settings: RunSettings,
    out: Path,
    emit: Emit,
    checkpoint: Checkpoint | None,
    model: TextToImage | None = None,
    *,
    ranks: Ranks = ALONE,
) -> Run:
    """Load the prompts, the rewards and, unless it is given, the model; restore a checkpoint's state."""
    torch.set_num_threads(settings.compute.num_threads or max(1, torch.get_num_threads() // ranks.world_size))
    device = find_device(settings.compute.device)
    prompts = load_prompts(settings)
    rewards = make_rewards(settings.rewards, device)
    for reward in rewards.values():
        reward.check_prompts((*prompts.training, *prompts.held_out))
    if model is None and settings.model.hub_id is not None:
        wanted = f"{settings.model.hub_id} at {settings.model.revision or 'main'}"
        emit(Message(time=time.time(), text=f"Loading {wanted}; what is not here yet is downloaded."))
    if model is None and device.type == "cuda" and ranks.is_main and not ranks.sharded:
        size = read_size(model_folder(settings.model), settings)
        available = torch.cuda.get_device_properties(device).total_memory
        emit(Message(time=time.time(), text=in_words(size, settings, available)))
    caches = model is None and settings.compute.embedding_cache
    model = model or load_model(settings.model)
    if ranks.sharded:
        # First: no device need hold the whole of it.
        shard(model.transformer, ranks, device)
    model = place(model, settings, device)
    encode: Encode = model.encode
    if caches:
        encode = _cached_encoder(settings, model, device, prompts, emit=emit, ranks=ranks)
    place_transformer(model, settings, device)
    trainable = make_trainable(model, settings.tuning, settings.seed, keep_base=_needs_base(settings))
    if settings.compute.compile:
        compile_blocks(model.transformer)
    options = settings.optimiser
    optimiser = make_optimiser(trainable.parameters.values(), options)
    average = RunningAverage(trainable.state(), options.ema_decay) if options.ema_decay > 0 else None
    sampler = RunningAverage(trainable.state(), settings.nft.sampler_decay) if settings.method == "nft" else None
    run = Run(
        settings=settings, out=out, emit=emit, model=model, encode=encode, device=device, prompts=prompts,
        rewards=rewards, trainable=trainable, optimiser=optimiser,
        kernel=make_kernel(settings.sampling.kernel, settings.sampling.eta), average=average, sampler=sampler,
        counter=ForwardCounter(model.transformer),
        sizes=fixed_sizes(
            fixed_size(settings.compute, device), device, _sayer(emit), recovers=not ranks.sharded
        ),
        guards=Guards(settings.guards, {reward.key: reward.weight for reward in settings.rewards}), ranks=ranks,
    )  # fmt: skip
    if checkpoint is not None:
        restore(run, checkpoint)
    return run


def _cached_encoder(
    settings: RunSettings, model: TextToImage, device: torch.device, prompts: RunPrompts, *, emit: Emit, ranks: Ranks
) -> Encode:
    """Encode every prompt the run will draw, free the text encoders, and read the embeddings from disk from then on.

    Each rank encodes its share first; only what it cannot read of the others' is encoded again.
    """
    folder = model_folder(settings.model)
    cache = EmbeddingCache(model, cache_root() / fingerprint(folder, settings.model, device), device)
    used = min(len(prompts.training), settings.iterations * settings.grpo.prompts_per_iteration)
    visited = prompts_of_iteration(prompts.training, 0, used, settings.prompts.seed + settings.seed)
    begun = told = time.perf_counter()

    def tell(done: int, total: int) -> None:
        nonlocal told
        if time.perf_counter() - told > _SECONDS_BETWEEN_WORDS:
            told = time.perf_counter()
            left = (told - begun) / max(done, 1) * (total - done)
            emit(Message(time=time.time(), text=f"Encoding prompts: {done} of {total}, about {left:.0f} s left."))

    needed = (*visited, *prompts.held_out)
    if ranks.world_size > 1:
        cache.fill(needed[ranks.share(len(needed)).rows], tell)
        ranks.gather(None)  # waits for them
    cache.fill(needed, tell)
    model.release_encoders()
    return cache.encode


def _sayer(emit: Emit) -> Callable[[str], None]:
    """Emits a text as a warning."""
    return lambda text: emit(Message(time=time.time(), level="warning", text=text))


@contextmanager
def sampling_policy(run: Run) -> Iterator[None]:
    """The weights inside the block are those that draw the run's images."""
    if run.sampler is None:
        yield
        return
    with run.trainable.replaced_by(run.sampler.average):
        yield


def save(run: Run) -> None:
    """Save a checkpoint and say so, unless there is one of this step; nothing before the first iteration.

    Every rank gives its part of the weights, and the main one saves. Raises DiskFullError; the newest complete
    checkpoint is then untouched.
    """
    if run.step == run.saved_step:
        return
    run.saved_step = run.step
    name = "adapter" if run.settings.tuning.method == "lora" else "transformer"
    tensors = {f"{name}.safetensors": _in_one_piece(run, run.trainable.state())}
    tensors["optimiser.safetensors"] = _in_one_piece(run, optimiser_tensors(run.optimiser, run.trainable.parameters))
    if run.average is not None:
        tensors["ema.safetensors"] = _in_one_piece(run, run.average.average)
    if run.sampler is not None:
        tensors["sampler.safetensors"] = _in_one_piece(run, run.sampler.average)
    if not run.ranks.is_main:
        return
    state = {"step": run.step, "base": str(run.settings.model.name), "guards": run.guards.state()}
    path = save_checkpoint(
        run.out / "checkpoints", run.step, tensors, state, run.settings, versions(), keep=run.settings.checkpoints.keep
    )
    run.emit(checkpoint_saved(run.out, path, run.step))


def stop(run: Run, reason: str) -> NoReturn:
    """Raise ValueError with the reason, after a checkpoint of the finished iterations."""
    save(run)
    raise ValueError(f"Stopped after iteration {run.step}. {reason}")


def warn(run: Run, iteration: int, text: str) -> None:
    """Say something of an iteration, counted from 1, in the run's log that its creator should look at."""
    run.emit(Message(time=time.time(), level="warning", text=text, step=iteration))


def _in_one_piece(run: Run, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, where they are held in parts put together by the main rank; nothing on the others."""
    pieces = {}
    for name, tensor in tensors.items():
        piece = whole(tensor)
        if run.ranks.is_main:
            pieces[name] = piece.cpu()
    return pieces


def restore(run: Run, checkpoint: Checkpoint) -> None:
    """Set weights, averages, optimiser state and step to the checkpoint's."""
    name = "adapter" if run.settings.tuning.method == "lora" else "transformer"
    run.trainable.load(checkpoint.tensors[f"{name}.safetensors"])
    restore_optimiser(run.optimiser, run.trainable.parameters, checkpoint.tensors["optimiser.safetensors"])
    if run.average is not None:
        run.average.average = run.trainable.parted(checkpoint.tensors["ema.safetensors"])
    if run.sampler is not None:
        run.sampler.average = run.trainable.parted(checkpoint.tensors["sampler.safetensors"])
    run.guards.restore(checkpoint.state["guards"])
    run.step = run.first_step = run.saved_step = checkpoint.step


def _needs_base(settings: RunSettings) -> bool:
    """Whether updates are compared with the base model."""
    return (settings.nft.base_weight if settings.method == "nft" else settings.grpo.kl_weight) > 0


def find_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one. Raises ValueError if there is none though named.

    On a GPU attention is by torch's own kernels from then on, for drawing and training alike: cuDNN's gave an illegal
    memory access in FLUX.1's checkpointed backward pass (H200, torch 2.11, CUDA 13).
    """
    if name == "cuda" and not torch.cuda.is_available():
        built = "" if torch.version.cuda else ", being built without CUDA (pytorch.org says how to install one with it)"
        raise ValueError(f'compute.device is "cuda", but torch sees no CUDA GPU here{built}; use "auto" or "cpu".')
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """What a person knows the device by: "CPU", or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
