//! Reads the part of PromQL that the alerts and the dashboard use, and refuses the rest: whoever needs more of the
//! language adds it here.

/// The series that an expression asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selector {
    pub(super) name: String,
    /// Label, operator and value.
    pub(super) matchers: Vec<(String, String, String)>,
}

/// What an expression asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) selectors: Vec<Selector>,
    /// Labels that are grouped by, and of what.
    pub(super) groupings: Vec<(Vec<String>, Vec<Selector>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Number,
    Duration,
    Text(String),
    Sign(String),
}

/// Whether a part is a series over time or a value at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Range,
    Instant,
}

const AGGREGATIONS: [&str; 5] = ["sum", "max", "min", "avg", "count"];
/// Functions with the shapes of their arguments.
const FUNCTIONS: [(&str, &[Shape]); 5] = [
    ("rate", &[Shape::Range]),
    ("increase", &[Shape::Range]),
    ("histogram_quantile", &[Shape::Instant, Shape::Instant]),
    ("clamp_min", &[Shape::Instant, Shape::Instant]),
    ("time", &[]),
];
const OPERATORS: [&str; 14] =
    ["+", "-", "*", "/", "%", "==", "!=", ">=", "<=", ">", "<", "and", "or", "unless"];
const MATCHES: [&str; 4] = ["=", "!=", "=~", "!~"];
/// Longer signs first.
const SIGNS: [&str; 21] = [
    "==", "!=", ">=", "<=", "=~", "!~", "=", ">", "<", "+", "-", "*", "/", "%", "(", ")", "{", "}", "[", "]",
    ",",
];

fn tokens(mut text: &str) -> Result<Vec<Token>, String> {
    let mut found = Vec::new();
    loop {
        text = text.trim_start();
        let Some(first) = text.chars().next() else { return Ok(found) };
        let end_of = |of: fn(char) -> bool| text.find(|c: char| !of(c)).unwrap_or(text.len());
        let length = if first.is_ascii_alphabetic() || first == '_' {
            let length = end_of(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
            found.push(Token::Word(text[..length].to_owned()));
            length
        } else if first.is_ascii_digit() {
            let length = end_of(|c| c.is_ascii_alphanumeric() || c == '.');
            let word = &text[..length];
            let is_duration =
                word.strip_suffix(['s', 'm', 'h', 'd']).is_some_and(|n| n.parse::<u32>().is_ok());
            match word.parse::<f64>() {
                Ok(_) => found.push(Token::Number),
                Err(_) if is_duration => found.push(Token::Duration),
                Err(_) => return Err(format!("{word} is no number")),
            }
            length
        } else if let Some(rest) = text.strip_prefix('"') {
            let length = rest.find('"').ok_or("a text has no end")?;
            if rest[..length].contains('\\') {
                return Err("escapes are not read".to_owned());
            }
            found.push(Token::Text(rest[..length].to_owned()));
            length + 2
        } else {
            let sign = SIGNS.iter().find(|sign| text.starts_with(**sign));
            let sign = sign.ok_or_else(|| format!("{first:?} is not read"))?;
            found.push(Token::Sign((*sign).to_owned()));
            sign.len()
        };
        text = &text[length..];
    }
}

/// Reads an expression.
pub(super) fn parse(text: &str) -> Result<Asked, String> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, asked: Asked::default() };
    if parser.expression()? != Shape::Instant {
        return Err("is a range".to_owned());
    }
    match parser.tokens.get(parser.at) {
        None => Ok(parser.asked),
        Some(token) => Err(format!("{token:?} comes after the end")),
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    asked: Asked,
}

impl Parser {
    fn next(&mut self) -> Result<Token, String> {
        let token = self.tokens.get(self.at).cloned().ok_or("ends too early")?;
        self.at += 1;
        Ok(token)
    }

    fn takes(&mut self, wanted: &str) -> bool {
        let is_next = match self.tokens.get(self.at) {
            Some(Token::Word(word) | Token::Sign(word)) => word == wanted,
            Some(Token::Number | Token::Duration | Token::Text(_)) | None => false,
        };
        self.at += usize::from(is_next);
        is_next
    }

    fn must_take(&mut self, wanted: &str) -> Result<(), String> {
        if self.takes(wanted) {
            return Ok(());
        }
        Err(format!("{wanted:?} is missing before {:?}", self.tokens.get(self.at)))
    }

    fn word(&mut self) -> Result<String, String> {
        match self.next()? {
            Token::Word(word) => Ok(word),
            token @ (Token::Number | Token::Duration | Token::Text(_) | Token::Sign(_)) => {
                Err(format!("{token:?} is no name"))
            }
        }
    }

    /// Operands with operators between them. Which binds tighter makes no difference to what is asked for.
    fn expression(&mut self) -> Result<Shape, String> {
        let first = self.operand()?;
        let mut count = 1;
        while OPERATORS.iter().any(|operator| self.takes(operator)) {
            if self.operand()? == Shape::Range {
                return Err("calculates with a range".to_owned());
            }
            count += 1;
        }
        if count > 1 && first == Shape::Range { Err("calculates with a range".to_owned()) } else { Ok(first) }
    }

    fn operand(&mut self) -> Result<Shape, String> {
        match self.next()? {
            Token::Number => Ok(Shape::Instant),
            Token::Sign(sign) if sign == "(" => {
                let shape = self.expression()?;
                self.must_take(")")?;
                Ok(shape)
            }
            Token::Word(word) if AGGREGATIONS.contains(&word.as_str()) => self.aggregation(),
            Token::Word(word) if self.takes("(") => self.call(&word),
            Token::Word(word) => self.selector(word),
            token @ (Token::Duration | Token::Text(_) | Token::Sign(_)) => {
                Err(format!("{token:?} is no operand"))
            }
        }
    }

    fn aggregation(&mut self) -> Result<Shape, String> {
        let mut labels = Vec::new();
        if self.takes("by") {
            self.must_take("(")?;
            labels.push(self.word()?);
            while self.takes(",") {
                labels.push(self.word()?);
            }
            self.must_take(")")?;
        }
        self.must_take("(")?;
        let before = self.asked.selectors.len();
        if self.expression()? == Shape::Range {
            return Err("aggregates a range".to_owned());
        }
        self.must_take(")")?;
        let inner = self.asked.selectors[before..].to_vec();
        self.asked.groupings.push((labels, inner));
        Ok(Shape::Instant)
    }

    fn call(&mut self, name: &str) -> Result<Shape, String> {
        let (_, shapes) =
            FUNCTIONS.iter().find(|(known, _)| *known == name).ok_or(format!("{name} is no function"))?;
        for (i, wanted) in shapes.iter().enumerate() {
            if i > 0 {
                self.must_take(",")?;
            }
            if self.expression()? != *wanted {
                return Err(format!("argument {} of {name} is no {wanted:?}", i + 1));
            }
        }
        self.must_take(")")?;
        Ok(Shape::Instant)
    }

    fn selector(&mut self, name: String) -> Result<Shape, String> {
        let mut matchers = Vec::new();
        if self.takes("{") {
            while !self.takes("}") {
                let label = self.word()?;
                let operator =
                    MATCHES.iter().find(|sign| self.takes(sign)).ok_or(format!("{label} is not compared"))?;
                let Token::Text(value) = self.next()? else { return Err(format!("{label} is no text")) };
                matchers.push((label, (*operator).to_owned(), value));
                if !self.takes(",") {
                    self.must_take("}")?;
                    break;
                }
            }
        }
        self.asked.selectors.push(Selector { name, matchers });
        if !self.takes("[") {
            return Ok(Shape::Instant);
        }
        match self.next()? {
            Token::Duration => self.must_take("]").map(|()| Shape::Range),
            token @ (Token::Word(_) | Token::Number | Token::Text(_) | Token::Sign(_)) => {
                Err(format!("{token:?} is no duration"))
            }
        }
    }
}

#[test]
fn expressions_are_read_and_others_refused() {
    let asked =
        parse("sum by (le, a) (rate(b_bucket{c=~\"d|e\",f=\"g\"}[5m])) / 2 > 0.5 or time() - h > 3 * 3600")
            .unwrap();
    let matcher =
        |label: &str, operator: &str, value: &str| (label.to_owned(), operator.to_owned(), value.to_owned());
    let b = Selector {
        name: "b_bucket".to_owned(),
        matchers: vec![matcher("c", "=~", "d|e"), matcher("f", "=", "g")],
    };
    let h = Selector { name: "h".to_owned(), matchers: Vec::new() };
    assert_eq!(asked.selectors, [b.clone(), h]);
    assert_eq!(asked.groupings, [(vec!["le".to_owned(), "a".to_owned()], vec![b])]);
    for bad in [
        "",
        "sum(a",
        "sum(a))",
        "a >",
        "a or",
        "a b",
        "rate(a)",
        "rate(a[5m]",
        "rate(a[5x])",
        "rate(a[5])",
        "a[5m]",
        "a[5m] > 1",
        "sum(a[5m])",
        "nothing(a)",
        "time(a)",
        "histogram_quantile(0.9)",
        "a{b}",
        "a{b=c}",
        "a{b=\"c\"",
        "a{=\"c\"}",
        "a{b=\"c}",
        "{b=\"c\"}",
        "sum by () (a)",
        "sum by a (a)",
        "5 $ 3",
        "1.2.3",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}
