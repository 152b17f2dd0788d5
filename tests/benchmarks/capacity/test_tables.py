"""What runs next, what was found, and how sure it is."""

import pytest
from storing.jobs import SEEDS, TUNING, Cell, _job, finished, passes, untried
from storing.law import Gain, Point, border, law
from storing.tables import difference, gate, table

PRIMARY = Cell("random", "one", 4_160)
NAMES = ["gate", "lora", "pool_up"]
FOUND = {"gate": 6000.0, "lora": 1500.0, "pool_up": 2500.0}


def simulated(cells=(PRIMARY,), names=NAMES):
    """Run everything, with bits that the method alone and a little the seed decide."""
    results, count = {}, 0
    while jobs := next(passes(results, cells, names), None):
        count += 1
        for job in jobs:
            bits = FOUND[job.method] * job.longer - abs(job.rate - 0.03) + job.seed / 1e5
            right = 1.0 if job.method == "gate" else bits / 6_200
            results[job] = {
                "bits": bits,
                "right": right,
                "parameters": 4_160,
                "bytes": 20_000,
                "seed": job.seed,
                "rate": job.rate,
            }
    return results, count


def test_a_search_has_three_rates_and_goes_on_at_an_edge():
    assert untried({}, 1e-2) == [4e-3, 1e-2, 2.5e-2]
    assert untried({4e-3: 1.0, 1e-2: 2.0, 2.5e-2: 1.0}, 1e-2) == []
    assert untried({4e-3: 1.0, 1e-2: 2.0, 2.5e-2: 3.0}, 1e-2) == [6.25e-2]
    six = dict(zip((4e-3, 1e-2, 2.5e-2, 6.25e-2, 0.1562, 0.3905), range(6), strict=True))
    assert untried(six, 1e-2) == []


def test_all_is_run_once_and_fresh_seeds_are_not_the_one_of_the_search():
    results, count = simulated()
    assert count == 3 * len(NAMES)
    rows = finished(results, PRIMARY, NAMES)
    assert {row["seed"] for row in rows["lora"]} == {*SEEDS}
    assert TUNING not in SEEDS
    assert next(passes(results, [PRIMARY], NAMES), None) is None
    del results[_job(PRIMARY, "lora", rows["lora"][0]["rate"], 3)]
    assert [job.seed for job in next(passes(results, [PRIMARY], NAMES))] == [3]


def test_a_rate_that_one_seed_was_lucky_with_gives_way():
    results, _ = simulated()
    assert {row["rate"] for row in finished(results, PRIMARY, NAMES)["lora"]} == {2.5e-2}
    for seed in SEEDS:
        results[_job(PRIMARY, "lora", 2.5e-2, seed)]["bits"] = 100.0
    assert "lora" not in finished(results, PRIMARY, NAMES)
    (*jobs,) = next(passes(results, [PRIMARY], NAMES))
    assert {job.rate for job in jobs} == {1e-2}


def test_twice_the_steps_wait_for_the_best_to_be_known():
    longer = Cell("random", "one", 4_160, longer=2)
    assert next(passes({}, [longer], NAMES), None) is None
    results, _ = simulated((PRIMARY, longer))
    assert set(finished(results, longer, NAMES)) == set(NAMES)


def test_a_difference_is_paired_and_corrected():
    rows = lambda *bits: [  # noqa: E731
        {"seed": i, "bits": b, "parameters": 100} for i, b in enumerate(bits)
    ]
    base = rows(100, 200, 300)
    found = difference(rows(120, 221, 319), base, 1)
    assert found.mean == pytest.approx(0.1)
    assert 0 < found.low < 0.1 < found.high
    assert found.wins
    assert not difference(rows(120, 221, 319), base, 1000).wins
    assert not difference(rows(102, 202.1, 301.9), base, 1).wins


def test_a_shut_gate_has_no_table():
    results, _ = simulated()
    is_open, words = gate(results, PRIMARY)
    assert is_open
    assert "100.0%" in words
    assert any("pool on `up`" in line for line in table(results, PRIMARY))
    shut = {job: {**row, "right": 0.9} for job, row in results.items()}
    assert not gate(shut, PRIMARY)[0]
    assert not any("pool" in line for line in table(shut, PRIMARY))


def test_a_law_is_found_where_there_is_one():
    def topology(start):
        cells = ((8.0, 5.0), (7.0, 5.0), (9.0, 5.0), (8.0, 6.0))
        return [Point(start + 0.9 * p - 0.2 * n, p, n) for p, n in cells]

    found = law({str(start): topology(start) for start in (-1.0, 0.0, 1.0)})
    assert (found.a, found.b) == (pytest.approx(0.9), pytest.approx(0.2))
    assert found.error == pytest.approx(0, abs=1e-9)
    assert (found.count, found.loads) == (9, True)


def test_the_rank_at_which_a_pool_gains_nothing_is_found():
    found = border([Gain(rank, 0.12 - 0.06 * power) for power, rank in enumerate((1, 2, 4, 8))])
    assert (found.at_one, found.doubling) == (pytest.approx(0.12), pytest.approx(0.06))
    assert found.rank == pytest.approx(4)
    assert found.error == pytest.approx(0, abs=1e-9)
