"""Prompts that evaluations draw from: framing, expression, turn of the head, background."""

TEMPLATES = (
    "a photo of {}",
    "a portrait of {}, smiling",
    "{}, serious, looking straight ahead",
    "a photo of {}, looking to the left",
    "a photo of {}, looking to the right",
    "a close portrait of {}, white background",
    "a picture of {}, on a black background",
    "a portrait of {} in bright light",
    "{}, with a smile, blue background",
    "a photo of {}, not smiling, grey background",
)


def prompts_for(subject: str) -> tuple[str, ...]:
    """The ten prompts about ``subject``, such as "a person" or the words that a LoRA was trained on."""
    return tuple(template.format(subject) for template in TEMPLATES)
