from pathlib import Path

from transformers import CLIPTokenizer

from idgen.data.vocabulary import byte_letters, learn_vocabulary, write_vocabulary

WORDS = ["a", "man", "woman", "smiling", "light", "looking", "left", "background", "grey", "green"]


def test_every_word_is_one_token_and_any_other_text_survives(tmp_path: Path) -> None:
    write_vocabulary(tmp_path, WORDS)
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert tokenizer.tokenize(" ".join(WORDS)) == [f"{word}</w>" for word in WORDS]
    strange = "zebra, 42 \u00fcber caf\u00e9s"
    assert tokenizer.unk_token not in tokenizer.tokenize(strange)
    assert tokenizer.decode(tokenizer(strange).input_ids, skip_special_tokens=True).replace(
        " ", ""
    ) == strange.replace(" ", "")


def test_the_order_of_the_words_does_not_matter() -> None:
    assert learn_vocabulary(WORDS) == learn_vocabulary(WORDS[::-1])


def test_tokens_are_numbered_once() -> None:
    vocabulary, merges = learn_vocabulary(WORDS)
    assert len(set(vocabulary)) == len(vocabulary)
    assert len(set(byte_letters())) == 256
    assert len(vocabulary) == 512 + len(merges) + 2
