# Rows of Parquet files of flows as `flows --json` writes them, but for the texts of times.
import json
import sys

import duckdb

flows = duckdb.read_parquet(sys.argv[1:])
unlike = "epoch_us(first) <> first_ns // 1000 OR epoch_us(last) <> last_ns // 1000"
assert flows.filter(unlike).fetchone() is None, "the two forms of times differ"
times = "{'ns': first_ns} AS first, {'ns': last_ns} AS last"
rows = flows.project(f"* EXCLUDE (first_ns, last_ns) REPLACE ({times})")
for row in rows.fetchall():
    print(json.dumps(dict(zip(rows.columns, row))))
