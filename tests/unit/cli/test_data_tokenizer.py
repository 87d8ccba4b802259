"""`kdscale data tokenizer`: a tokenizer of a run's own text."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from kdscale.cli import main
from kdscale.run.finished_run import CONFIG_KEY
from tests.unit.distill.whole_run import TEXTS, make_run


def test_a_tokenizer_is_trained_on_the_prepared_text_and_never_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    config = str(run.run.output.local_path(CONFIG_KEY))
    folder = tmp_path / "own"
    with pytest.raises(SystemExit) as ended:
        main(["data", "tokenizer", config, str(folder), "--vocab-size", "300"])
    assert not ended.value.code
    assert f"300 ids in {folder}" in capsys.readouterr().out
    found = AutoTokenizer.from_pretrained(folder)
    assert len(found) == 300
    for text in TEXTS["validation"]:
        assert found.decode(found.encode(text, add_special_tokens=False)) == text
    with pytest.raises(SystemExit) as ended:
        main(["data", "tokenizer", config, str(folder)])
    assert ended.value.code
    assert "exists already" in capsys.readouterr().err
