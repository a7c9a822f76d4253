from metaformer.storage import FileNames


def test_each_image_has_a_name_of_its_own() -> None:
    names = FileNames()
    given = [names.of(path) for path in ("a/x.jpg", "b/x.png", "x_2.png", "c/X.jpg", "", "")]
    assert given == ["x", "x_2", "x_2_2", "X_3", "image", "image_2"]
    assert names.unlike("x") == "x_4"
