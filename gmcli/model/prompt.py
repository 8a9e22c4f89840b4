"""Write the prompt around a question and tokenise it around the image.

Source: LLaVA conversation.py (`llava_v1`, `llava_llama_2`), LISA utils/conversation.py and utils/utils.py.
"""

from gmcli.model.config import MoraConfig
from gmcli.model.tokenizer import Tokenizer

IMAGE = "<image>"

_SYSTEM_V1 = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_SYSTEM_LLAMA_2 = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)


def build_prompt(question: str, config: MoraConfig) -> str:
    """Return the text given to the language model, with `<image>` where the visual tokens go.

    The question is stripped; it may not contain `<image>`, which the manifest reader refuses.
    """
    image = f"<im_start>{IMAGE}<im_end>" if config.use_im_start_end else IMAGE
    message = f"{image}\n{question.strip()} {config.instruction}".rstrip()
    match config.conversation:
        case "llava_v1":
            return f"{_SYSTEM_V1} USER: {message} ASSISTANT:"
        case "llava_llama_2":
            return f"[INST] <<SYS>>\n{_SYSTEM_LLAMA_2}\n<</SYS>>\n\n{message} [/INST]"
        case "plain":
            return f"USER: {message} ASSISTANT:"


def tokenize_prompt(prompt: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids before the visual tokens (with <s>) and the ids after them.

    Source: LISA model/llava/mm_utils.py, tokenizer_image_token.
    """
    before, after = prompt.split(IMAGE)
    return tokenizer.encode(before), tokenizer.encode(after)[1:]
