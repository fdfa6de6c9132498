"""The browser client's queue and its clock: IndexedDB that works, is full, is denied or is deleted."""

import json

import pytest

from clients.browsers import Scene, record, settle, wait_for
from clients.disturbances import answer_lost, no_answer
from support.processes import eventually


def test_a_recorded_metric_is_written_within_a_frame(scene: Scene) -> None:
    """The first callback is the end of the frame under way, the second that of a whole one."""
    scene.proxy.down = True
    page = scene.open()
    page.wait_for_timeout(500)
    kept = page.evaluate("""() => new Promise((resolve) => {
      client.record("talked_time", 1);
      requestAnimationFrame(() => requestAnimationFrame(async () => {
        const [{ name }] = await indexedDB.databases();
        indexedDB.open(name).onsuccess = ({ target }) => {
          const request = target.result.transaction("queue").objectStore("queue").getAll();
          request.onsuccess = () => resolve(request.result);
        };
      }));
    })""")
    assert [json.loads(line)["value"] for line in kept] == [1]


def test_the_queue_is_bounded_and_the_oldest_go(scene: Scene) -> None:
    page = scene.visit()
    scene.proxy.down = True
    scene.begin(page, maxQueue=10, flushMs=60_000)
    for value in range(25):
        record(page, value)
        page.wait_for_timeout(10)
    wait_for(page, lambda: sum(scene.site.drops) == 15)
    scene.proxy.down = False
    scene.reload(page)
    wait_for(page, lambda: scene.user.values == list(range(15, 25)))


def test_a_full_disk_leaves_the_metrics_in_memory(scene: Scene) -> None:
    page = scene.visit()
    scene.proxy.down = True
    scene.begin(page)
    settle(page)
    quota = {"origin": scene.site.url.rstrip("/"), "quotaSize": 1}
    scene.context.new_cdp_session(page).send("Storage.overrideQuotaForOrigin", quota)
    record(page, *range(50))
    page.wait_for_timeout(500)
    scene.proxy.down = False
    wait_for(page, lambda: scene.user.values == list(range(50)))


def test_deleting_the_sites_data_does_not_lose_what_the_page_recorded(scene: Scene) -> None:
    page = scene.visit()
    scene.proxy.down = True
    scene.begin(page)
    record(page, 1)
    page.wait_for_timeout(500)
    session = scene.context.new_cdp_session(page)
    session.send("Storage.clearDataForOrigin", {"origin": scene.site.url.rstrip("/"), "storageTypes": "all"})
    page.wait_for_timeout(300)
    record(page, 2)
    scene.proxy.down = False
    wait_for(page, lambda: scene.user.values == [1, 2])


def test_without_indexeddb_and_locks_metrics_are_sent_from_memory(scene: Scene) -> None:
    """A sandboxed page has no origin, so that Chromium denies it both."""
    scene.site.headers["Content-Security-Policy"] = "sandbox allow-scripts"
    page = scene.visit()
    denied = "() => { try { indexedDB.open('x'); return 'allowed' } catch (error) { return error.name } }"
    assert page.evaluate(denied) == "SecurityError"
    scene.proxy.troubles = [no_answer, answer_lost]
    scene.begin(page, maxQueue=8)
    record(page, *range(10))
    wait_for(page, lambda: scene.proxy.replies)
    assert scene.user.values == list(range(2, 10))
    page.wait_for_timeout(500)  # until the page has read the answer, and its queue is empty
    record(page, -1)
    wait_for(page, lambda: scene.site.reports)
    assert [report["code"] for report in scene.site.reports] == ["value_out_of_range"]
    assert scene.site.drops == [2]
    record(page, 11)
    page.close()
    eventually(lambda: scene.user.values[-1] == 11)


@pytest.mark.alone
@pytest.mark.parametrize("days", [3, -3])
@pytest.mark.parametrize("reload", [False, True])
def test_a_clock_that_is_days_wrong_is_corrected(scene: Scene, days: int, reload: bool) -> None:
    """Ahead: what was refused is corrected and sent again. Behind: what follows the first answer is correct."""
    wrong = f"const right = Date.now; Date.now = () => right() + {days} * 864e5"
    page = scene.visit(wrong)
    scene.proxy.down = reload
    scene.begin(page)
    record(page, 1)
    if reload:
        settle(page)
        page.reload()
        scene.proxy.down = False
        scene.begin(page)
    wait_for(page, lambda: scene.user.values == [1])
    settle(page)  # the answer, which has the server's time, comes after the metric is stored
    record(page, 2)
    wait_for(page, lambda: scene.user.values == [1, 2])
    first, second = scene.user.ages_s
    assert -3 < second < 10
    assert -3 < first < 20 if days > 0 else abs(first - 3 * 86400) < 20
    assert scene.site.reports == []
    assert len(scene.proxy.replies) <= 3


def test_a_correct_timestamp_is_not_corrected_and_a_wrong_one_only_once(scene: Scene) -> None:
    page = scene.visit("const right = Date.now; Date.now = () => right() - 3 * 864e5")
    scene.begin(page)
    page.evaluate("client.record('talked_time', 1, { timestamp: '2100-01-01T00:00:00Z' })")
    page.evaluate("client.record('talked_time', 2, { timestamp: '2024-08-08T12:34:56.123456Z' })")
    wait_for(page, lambda: scene.site.reports)
    assert [report["code"] for report in scene.site.reports] == ["timestamp_out_of_range"]
    assert len(scene.proxy.requests) == 2
    assert scene.user.values == [2]
