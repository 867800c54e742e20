"""What `refresh.py` saves is light, and still says the same."""

import base64
import io

import nbformat
import numpy as np
import pytest
from PIL import Image
from refresh import SHOWN_ELSEWHERE, refresh, smaller, tidied, tidy


def png_of(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def picture():
    grey = np.random.default_rng(0).integers(0, 256, (120, 120)).astype(np.uint8)
    return png_of(np.stack([grey] * 3, axis=-1))


def test_a_picture_gets_smaller_and_looks_the_same(picture):
    found = smaller(picture)
    assert len(found) < len(picture)
    before, after = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), int)
        for png in (picture, found)
    )
    assert np.abs(before - after).max() <= 8


def test_a_widget_keeps_its_picture_alone(picture):
    output = nbformat.v4.new_output(
        "display_data", {SHOWN_ELSEWHERE: {"model_id": "1"}, "image/png": picture}
    )
    assert set(tidied(output)["data"]) == {"image/png"}
    bare = nbformat.v4.new_output(
        "display_data", {SHOWN_ELSEWHERE: {"model_id": "1"}, "text/plain": "Bar()"}
    )
    assert tidied(bare) is None


def test_a_warning_does_not_say_where_it_was_given():
    told = "/tmp/ipykernel_7/1.py:2: VolumeWarning: no affine\n  session.predict(scan)\n"
    output = nbformat.v4.new_output("stream", name="stderr", text=told)
    assert tidied(output)["text"] == "VolumeWarning: no affine\n  session.predict(scan)\n"


def test_pictures_inside_html_get_smaller(picture):
    html = f'<p>before</p><img src="data:image/png;base64,{picture}"/>'
    output = nbformat.v4.new_output("display_data", {"text/html": html})
    found = tidied(output)["data"]["text/html"]
    assert found.startswith("<p>before</p><img src=")
    assert len(found) < len(html)


def test_a_tidy_notebook_has_no_state_and_keeps_its_ids():
    cell = nbformat.v4.new_code_cell("1", execution_count=1, id="cell-7")
    cell.metadata["execution"] = {"iopub.execute_input": "today"}
    cell.outputs = [nbformat.v4.new_output("stream", text=text) for text in ("one\n", "two\n")]
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
    tidy(notebook)
    assert set(notebook.metadata) == {"language_info"}
    assert cell.id == "cell-7"
    assert cell.metadata == {}
    assert [output.text for output in cell.outputs] == ["one\ntwo\n"]


def test_a_notebook_that_fails_is_left_as_it_was(tmp_path):
    path = tmp_path / "broken.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        refresh(path)
    assert path.read_bytes() == before
