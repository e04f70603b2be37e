from __future__ import annotations

from dipgo_deploy.core.progress import Progress, Work, finish, with_overall


def test_the_overall_share_follows_corrected_sizes_and_never_decreases():
    sizes = {"short": 1.0, "long": 3.0}

    def work() -> Work[str]:
        yield Progress("short", 1, 1)
        sizes["long"] = 9.0
        yield Progress("free", 1, 1)
        yield Progress("long", 1, 2)
        yield Progress("long", 2, 2)
        return "result"

    seen: list[Progress] = []
    assert finish(with_overall(work(), sizes), seen.append) == "result"
    assert [progress.overall for progress in seen] == [0.25, 0.25, 0.55, 1.0]
    assert [progress.stage for progress in seen] == ["short", "free", "long", "long"]
