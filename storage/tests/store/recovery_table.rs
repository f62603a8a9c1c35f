//! `docs/RECOVERY.md` and the code have the same decision table.

use wirevault_index::recover::{Decision, ROWS, Row};

#[test]
fn the_document_has_the_rows_of_the_code() {
    let document = include_str!("../../../docs/RECOVERY.md");
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let written: Vec<Vec<String>> = document
        .lines()
        .skip_while(|line| !line.starts_with("| case |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| cells(line)[..6].to_vec())
        .collect();
    let coded: Vec<Vec<String>> = ROWS.iter().map(in_words).collect();
    assert_eq!(written, coded);
}

fn in_words(row: &Row) -> Vec<String> {
    let answer = |answer: Option<bool>| match answer {
        Some(true) => "yes",
        Some(false) => "no",
        None => "any",
    };
    let decision = match row.decision {
        Decision::Keep => "keep",
        Decision::Cut => "cut",
        Decision::Damaged => "damaged",
        Decision::Hole => "hole",
    };
    let answers = [row.header, row.body, row.follows, row.acknowledged].map(answer);
    let case = row.case.to_string();
    let mut cells = vec![case.as_str()];
    cells.extend(answers);
    cells.push(decision);
    cells.into_iter().map(str::to_owned).collect()
}
