"""A tokenizer by its name: "gpt2", or a `tokenizer.json`."""

from pathlib import Path

from quintic.data.bpe_tokenizer import TOKENIZER_FILE, BpeTokenizer
from quintic.data.gpt2_tokenizer import GPT2, Gpt2Tokenizer
from quintic.data.tokenizer import Tokenizer, TokenizerInfo
from quintic.errors import QuinticError, reason, way_out


def load_tokenizer(spec: str) -> Tokenizer:
    """Load "gpt2", or a `tokenizer.json` by its path or that of its folder.

    Raises `QuinticError` for nothing of that name, a damaged file, and GPT-2's vocabulary not to be
    had.
    """
    if spec == GPT2.name:
        return Gpt2Tokenizer()
    path = Path(spec).expanduser()
    if path.is_dir():
        path = path / TOKENIZER_FILE
    try:
        definition = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise QuinticError(
            f"tokenizer '{spec}' is neither 'gpt2' nor a {TOKENIZER_FILE}: no file {path}; name "
            f"one of the two"
        ) from None
    except OSError as error:
        raise QuinticError(
            f"tokenizer {path} cannot be read ({reason(error)}): {way_out(error)}"
        ) from error
    except UnicodeDecodeError as error:
        raise QuinticError(
            f"tokenizer {path} is no UTF-8: name a {TOKENIZER_FILE}, or 'gpt2'"
        ) from error
    return BpeTokenizer(definition, source=str(path))


def tokenizer_info(spec: str) -> TokenizerInfo:
    """Return the facts of a tokenizer; those of GPT-2 are known without its vocabulary.

    So training on ready-made GPT-2 shards works where nothing can be downloaded. Raises
    `QuinticError` as `load_tokenizer` does.
    """
    return GPT2 if spec == GPT2.name else load_tokenizer(spec).info
