//! Reads code as text, without its comments, strings and characters: how long functions are, and where a word stands.

/// Each function's first line, name, and number of lines in its body that are neither blank nor comment.
pub(crate) fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let code = without_literals(text);
    let mut open: Vec<(usize, String, usize, usize)> = Vec::new();
    let mut done = Vec::new();
    let mut depth = 0_usize;
    let mut waiting: Option<(usize, String)> = None;
    for (position, line) in code.lines().enumerate() {
        for function in &mut open {
            function.3 += usize::from(!line.trim().is_empty());
        }
        if let Some(name) = function_name(line) {
            waiting = Some((position + 1, name));
        }
        for c in line.chars() {
            match c {
                '{' => {
                    depth += 1;
                    if let Some((line, name)) = waiting.take() {
                        open.push((line, name, depth, 0));
                    }
                }
                '}' => {
                    if open.last().is_some_and(|function| function.2 == depth) {
                        let (line, name, _, lines) = open.pop().expect("just seen");
                        done.push((line, name, lines.saturating_sub(1)));
                    }
                    depth = depth.saturating_sub(1);
                }
                ';' => waiting = None,
                _ => {}
            }
        }
    }
    done
}

fn function_name(line: &str) -> Option<String> {
    let at = line.find("fn ").filter(|at| *at == 0 || line[..*at].ends_with([' ', '(']))?;
    let name: String = line[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// The text with comments, strings and characters blanked, line for line.
pub(crate) fn without_literals(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let literal = literal_len(rest, code.chars().next_back());
        if literal == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.extend(rest[..literal].chars().filter(|c| *c == '\n'));
            rest = &rest[literal..];
        }
    }
    code
}

/// Length of the comment, string or character that the text begins with; 0 if none.
fn literal_len(text: &str, before: Option<char>) -> usize {
    let until = |from: usize, end: &str| text[from..].find(end).map_or(text.len(), |at| from + at + end.len());
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return until(2, "*/");
    }
    if text.starts_with('"') {
        return quoted_len(text, '"');
    }
    let is_after_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if text.starts_with('r') && !is_after_word {
        let hashes = text[1..].chars().take_while(|c| *c == '#').count();
        if text[1 + hashes..].starts_with('"') {
            return until(2 + hashes, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    if text.starts_with('\'') {
        // A lifetime has no second quote where a character has it.
        let mut chars = text.strip_prefix(|_: char| true).unwrap_or_default().chars();
        return match (chars.next(), chars.next()) {
            (Some('\\'), _) => quoted_len(text, '\''),
            (Some(c), Some('\'')) => 2 + c.len_utf8(),
            _ => 0,
        };
    }
    0
}

fn quoted_len(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

pub(crate) fn contains_word(text: &str, word: &str) -> bool {
    let is_inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word).any(|(at, _)| {
        let is_start = word.starts_with('.') || !is_inside(text[..at].chars().next_back());
        is_start && !is_inside(text[at + word.len()..].chars().next())
    })
}

#[test]
fn the_reader_sees_code_and_not_literals() {
    let text =
        "fn a() {\n    let s = \"}\\\"{\"; // }\n\n    let c = '{';\n    let r = r#\"}\"}\"#;\n    b::<'x>()\n}\n";
    assert_eq!(functions(text), [(1, "a".to_owned(), 4)]);
    assert_eq!(without_literals("x /* a\nb */ 'c' 'd: \"\n\""), "x \n  'd: \n");
    let nested = "trait T {\n    fn declared(&self);\n    fn outer() {\n        fn inner() {}\n    }\n}\n";
    let by_name: std::collections::BTreeMap<_, _> =
        functions(nested).into_iter().map(|(line, name, lines)| (name, (line, lines))).collect();
    assert_eq!(by_name["outer"], (3, 1));
    assert!(by_name.contains_key("inner") && !by_name.contains_key("declared"));
    assert!(contains_word("a.wal.segment_bytes;", "wal.segment_bytes"));
    assert!(!contains_word("a.wal.segment_bytes_max", "wal.segment_bytes") && !contains_word("xwal.b", "wal.b"));
}
