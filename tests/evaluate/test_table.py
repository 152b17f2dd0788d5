from bishare_dsl.evaluate.table import rows_of, table_of


def run(**figures):
    return {
        "results": {
            "speed": {"alias": "speed", "sample_len": 9, "seconds,none": figures["seconds"]},
            "quiz": {
                "alias": "quiz",
                "sample_len": 30,
                "acc,none": figures["acc"],
                "acc_stderr,none": 0.0123456,
                "f1,strict": figures["acc"] / 2,
                "f1_stderr,strict": "N/A",
            },
        },
        "n-shot": {"quiz": 4},
    }


def test_models_stand_side_by_side():
    results = {"base": run(acc=0.25, seconds=2), "one": run(acc=0.75, seconds=3.5)}
    rows = rows_of(results)
    assert str(table_of(rows, results)).splitlines() == [
        "task   n-shot  metric                base              one",
        "-----  ------  ---------  ---------------  ---------------",
        "speed          seconds             2.0000           3.5000",
        "quiz        4  acc        0.2500 ± 0.0123  0.7500 ± 0.0123",
        "quiz        4  f1 strict           0.1250           0.3750",
    ]
    assert rows[1] == {
        "task": "quiz",
        "num_fewshot": 4,
        "metric": "acc",
        "filter": "none",
        "scores": {
            "base": {"value": 0.25, "stderr": 0.0123456},
            "one": {"value": 0.75, "stderr": 0.0123456},
        },
    }
    assert rows[2]["scores"]["one"]["stderr"] is None
