"""Small random stand-ins for the text encoders and tokenizers that diffusers' tests take from the Hub."""

import contextlib
import inspect
import string
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import tokenizers
import torch
import transformers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, image_processing_base

SPECIAL = ("<pad>", "</s>", "<s>", "<unk>", "<|endoftext|>", "<|startoftext|>")
PICTURES = {"<|vision_start|>": 151652, "<|vision_end|>": 151653, "<|image_pad|>": 151655, "<|video_pad|>": 151656}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TOKENS = 1000  # of the vocabularies
WIDTH = 32
SIZES = {
    **{"vocab_size": TOKENS, "hidden_size": WIDTH, "intermediate_size": 37, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "eos_token_id": 1},
    **{"bos_token_id": 2, "max_position_embeddings": 512},
}
MROPE = {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]}
VISION = {
    **{"depth": 2, "hidden_size": WIDTH, "embed_dim": WIDTH, "intermediate_size": WIDTH, "num_heads": 2},
    **{"out_hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "image_size": 28, "patch_size": 14},
}


def text_tokenizer(length: int = 77) -> Any:
    """A tokenizer of single characters."""
    characters = [*SPECIAL, *string.printable, "\u2581", "\u0120"]
    model = tokenizers.models.WordLevel({token: place for place, token in enumerate(characters)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        model_max_length=length,
    )
    fast.chat_template = TEMPLATE
    return fast


def configuration(name: str) -> Any:
    """The configuration of a tiny model of the Hub, by its id."""
    kinds = {"t5": transformers.T5Config, "umt5": transformers.UMT5Config, "Bert": transformers.BertConfig}
    kind = next((kinds[part] for part in ("umt5", "t5", "Bert") if part in name), transformers.T5Config)
    if "t5" in name.lower():
        return kind(vocab_size=TOKENS + 100, d_model=WIDTH, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return kind(**{key: value for key, value in SIZES.items() if key not in ("num_key_value_heads", "head_dim")})


@contextlib.contextmanager
def instead_of_the_hub() -> Iterator[None]:
    """Inside `with`, ids of the Hub give stand-ins; folders are opened as always."""
    opened: dict[Any, Callable[[Any, str], Any]] = {
        PreTrainedTokenizerBase: lambda cls, _: _tokenizer(cls),
        transformers.AutoTokenizer: lambda _, __: text_tokenizer(),
        transformers.AutoConfig: lambda _, name: configuration(name),
        transformers.AutoProcessor: lambda _, __: _processor(transformers.Qwen2VLProcessor),
        transformers.ProcessorMixin: lambda cls, _: _processor(cls),
        image_processing_base.ImageProcessingMixin: lambda cls, _: cls(),
        transformers.FeatureExtractionMixin: lambda cls, _: cls(),
        transformers.PreTrainedModel: _model,
    }
    with contextlib.ExitStack() as stack:
        for owner, stand_in in opened.items():
            loaded = _unless_id(owner.from_pretrained.__func__, stand_in)
            stack.enter_context(mock.patch.object(owner, "from_pretrained", classmethod(loaded)))
        yield


def _unless_id(load: Callable[..., Any], stand_in: Callable[[Any, str], Any]) -> Any:
    def loaded(cls: Any, name: Any, *args: Any, **options: Any) -> Any:
        is_id = str(name).count("/") == 1 and not str(name).startswith(("/", "."))
        return stand_in(cls, str(name)) if is_id else load(cls, name, *args, **options)

    return loaded


def _tokenizer(cls: Any) -> Any:
    """A tokenizer of single characters, of the class that a pipeline asks for where that is possible."""
    letters = [*SPECIAL, *string.ascii_lowercase, *string.punctuation]
    if cls is transformers.T5Tokenizer:
        return cls(vocab=[(token, 0.0) for token in [*letters, "\u2581"]], extra_ids=0, model_max_length=77)
    if (
        "vocab" in inspect.signature(cls.__init__).parameters
        and "merges" in inspect.signature(cls.__init__).parameters
    ):
        with contextlib.suppress(Exception):
            vocabulary = {token: place for place, token in enumerate([*letters, "\u0120"])}
            if "Qwen" not in cls.__name__:
                made = cls(vocab=vocabulary, merges=[], model_max_length=77)
            else:
                made = cls(vocab={**vocabulary, **PICTURES}, merges=[], model_max_length=2048)
                made.add_special_tokens({"additional_special_tokens": list(PICTURES)})
            made.pad_token = made.pad_token or "<pad>"
            made.chat_template = TEMPLATE
            return made
    return text_tokenizer()


def _processor(cls: Any) -> Any:
    """A processor of texts and pictures, with parts of its default classes."""
    family = cls.__name__.removesuffix("Processor").removesuffix("VL")
    parts = {
        "tokenizer": _tokenizer(getattr(transformers, f"{family}Tokenizer", transformers.Qwen2Tokenizer)),
        "image_processor": transformers.Qwen2VLImageProcessor(),
        "video_processor": transformers.Qwen2VLVideoProcessor(),
    }
    accepted = inspect.signature(cls.__init__).parameters
    return cls(**{name: part for name, part in parts.items() if name in accepted}, chat_template=TEMPLATE)


def _model(cls: Any, name: str) -> Any:
    kind = cls.config_class
    if "t5" in name.lower():
        return cls(configuration(name))
    accepted = inspect.signature(kind.__init__).parameters
    torch.manual_seed(0)
    if "text_config" in accepted:
        return cls(
            kind(text_config={**SIZES, "hidden_size": 16, "head_dim": 4, "rope_scaling": MROPE}, vision_config=VISION)
        ).eval()
    if "Llama" in name:
        return cls(kind(**{**SIZES, "hidden_size": 16})).eval()
    return cls(kind(**{key: value for key, value in SIZES.items() if key in accepted})).eval()
