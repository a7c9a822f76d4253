"""What users read about a loaded checkpoint."""

from metaformer.weights.report import LoadReport


def test_up_to_ten_names_of_a_kind_are_shown_with_the_total() -> None:
    report = LoadReport("timm", "x.pth", missing=[f"m{i}" for i in range(12)])
    assert report.problems() == [f"12 missing in the file: {', '.join(f'm{i}' for i in range(10))}, …"]
    assert not report.complete


def test_misshaped_names_have_both_shapes() -> None:
    report = LoadReport("timm", "x.pth", misshaped=[("a", (2, 3), (4,)), ("b", (), (1,))])
    assert report.problems() == ["2 misshaped: a 2×3 in the file, 4 here, b a number in the file, 1 here"]


def test_a_complete_report_is_short() -> None:
    report = LoadReport("timm", "x.pth", loaded=["a"], fraction=1.0)
    assert report.complete and str(report) == "x.pth: timm format, 1 tensors, 100.0% of the model"
