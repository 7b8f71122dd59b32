"""CLIP's vocabulary, built from its merges, is OpenCLIP's."""

import hashlib
from pathlib import Path
from typing import Final

import pytest
from transformers import CLIPTokenizer

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.clip_vocabulary import END, clip_vocabulary, write_tokenizer, write_tokenizers
from pipeline.training.tokenizer import save_tokenizer, word_tokenizer

FACTS: Final[dict[str, str]] = {
    "": "",
    "a photo of a cat": "320 1125 539 320 2368",
    "A Photograph of an astronaut riding a horse, 8k, trending on artstation!": (
        "320 8853 539 550 18376 6765 320 4558 267 279 330 267 6087 525 1486 2631 256"
    ),
    "don't stop: it's the dog's": "847 713 1691 281 585 568 518 1929 568",
    "naïve café über straße": "1097 35689 563 15304 6522 1516 1894 127 253 324",
    "12345 67.89 3x": "272 273 274 275 276 277 278 269 279 280 274 343",
    "日本語のテキスト": "39121 44353 34002 252 21575 2429 228 47121 32421 486",
    "Привет мир": "26302 16370 29503 110 22176 141 480 38018 16701 141 478",
    "emoji 😀🎉 here": "16327 12832 3986 763",
    "masterpiece, best quality, (detailed:1.2)": "12066 267 949 3027 267 263 12609 281 272 269 273 264",
    "hello   world\n new\tline": "3306 1002 686 1148",
    "supercalifragilisticexpialidocious": "1642 2857 13093 2076 5868 26850 835 639 38466",
    "#hashtag @user http://example.com/a?b=c": ("258 9238 287 7031 15066 12441 6228 269 2464 270 320 286 321 284 322"),
    "jekyll & hyde": "49405 261 16343",
    "<lora:x:1>": "283 2179 320 281 343 281 272 285",
    "I'll've we're they'd HE'S": "328 1342 1200 649 982 889 1896 797 568",
    "한국어 문장": "15197 250 31871 255 31625 368 167 105 116 20849 354",
    "مرحبا بالعالم": "12986 10948 25722 16378 22625 16378 12973 18843 12973 29945",
    "ภาษาไทย": "1777 254 12330 102 11529 31718 245 33091",
    "ÀÉÎÕÜ àéîõü": "36149 3459 48704 127 113 47177 36149 3459 48704 127 113 47177",
    "¿Qué? ¡Sí!": "17133 666 4166 286 10830 82 23928 256",
    "½ cup, 10€ – £5": "33613 1937 267 272 271 6309 1224 1950 276",  # noqa: RUF001
    "a_b-c/d\\e|f": "320 318 321 268 322 270 323 315 324 347 325",
    "((({[<>]})))": "22944 7 90 58 27 29 60 92 18305",
    "C++ vs C#; x^2 + y_3 = ~5%": "322 19056 1547 322 2 282 343 317 273 266 344 318 274 284 349 276 260",
    "🧑\u200d🚀 👍🏽": "8792 239 4244 13542 43722",
    "Ελληνικά κείμενο": (
        "138 113 138 119 138 119 138 115 138 121 138 117 138 118 138 361 "
        "138 118 138 113 138 107 138 120 138 113 138 121 138 379"
    ),
    "ß ẞ ŒUVRE œuvre": "127 509 127 509 129 241 84 17501 129 241 84 17501",
    "...!!!???": "3002 11194 3824",
    "1girl, solo, blue_eyes, 4k uhd, f/1.8": (
        "272 1611 267 5797 267 1746 318 3095 267 275 330 84 4414 267 325 270 272 269 279"
    ),
}
"""Texts and their token ids as open_clip_torch 3.3's tokenizer gives them, without the start and end tokens."""

ENCODER: Final = {"vocab_size": 49408, "max_position_embeddings": 77}


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_tokens_and_merges_are_openclips() -> None:
    """The digests are of the same lines made of open_clip_torch 3.3's tokenizer, with CLIP's names of start and end."""
    vocabulary, merges = clip_vocabulary()
    lines = "".join(f"{index} {token}\n" for token, index in vocabulary.items())
    assert sha256(lines) == "1d3b4940a080a5159df11f54f8508d8076a9deb2e85b20e6785af7d8a4bc3f01"
    assert sha256("\n".join(merges)) == "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"


def test_texts_have_openclips_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, *clip_vocabulary(), padding=END, window=77)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert (len(tokenizer), tokenizer.model_max_length) == (49408, 77)
    for text, ids in FACTS.items():
        assert tokenizer(text).input_ids == [49406, *map(int, ids.split()), 49407], text


def test_each_text_encoder_pads_with_its_own_token(tmp_path: Path) -> None:
    write_tokenizers(tmp_path, {"text_encoder": ENCODER, "text_encoder_2": ENCODER}, (END, None), None, source="file")
    padded = [CLIPTokenizer.from_pretrained(tmp_path / name) for name in ("tokenizer", "tokenizer_2")]
    assert [tokenizer.pad_token_id for tokenizer in padded] == [49407, 0]


def test_a_given_tokenizer_is_taken_as_it_is_and_pads_the_second_encoder_with_token_0(tmp_path: Path) -> None:
    save_tokenizer(word_tokenizer(["red", "circle"], 16), tmp_path / "given")
    encoders = {"text_encoder": ENCODER, "text_encoder_2": ENCODER}
    write_tokenizers(tmp_path / "one", encoders, (END, None), tmp_path / "given", source="file")
    first, second = (CLIPTokenizer.from_pretrained(tmp_path / "one" / name) for name in ("tokenizer", "tokenizer_2"))
    given = CLIPTokenizer.from_pretrained(tmp_path / "given")
    for tokenizer in (first, second):
        assert tokenizer("a red circle").input_ids == given("a red circle").input_ids
    assert (first.pad_token_id, second.pad_token_id) == (given.pad_token_id, 0)
    write_tokenizers(tmp_path / "two", encoders, (END, None), tmp_path / "one", source="file")
    assert CLIPTokenizer.from_pretrained(tmp_path / "two" / "tokenizer_2").pad_token_id == 0


def test_a_wrong_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for given, vocabulary, message in (
        (tmp_path / "missing", 49408, "--tokenizer .*missing: no such folder"),
        (tmp_path / "empty", 49408, "--tokenizer .*empty: holds no vocab.json"),
        (None, 640, "file: its text encoder has 640 tokens, CLIP's vocabulary 49408; give another --tokenizer"),
    ):
        encoder = {**ENCODER, "vocab_size": vocabulary}
        with pytest.raises(CheckpointError, match=message):
            write_tokenizers(tmp_path / "out", {"text_encoder": encoder}, (END,), given, source="file")
