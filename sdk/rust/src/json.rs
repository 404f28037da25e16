//! As much of JSON as the manager speaks: objects of numbers, strings, truths and objects.

/// A value. What we have no use for is [`Value::Other`].
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Number(u64),
    Text(String),
    Truth(bool),
    Object(Vec<(String, Value)>),
    Other,
}

impl Value {
    pub fn get(&self, name: &str) -> Option<&Value> {
        let Self::Object(fields) = self else { return None };
        fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        if let Some(Self::Number(number)) = self.get(name) { Some(*number) } else { None }
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        if let Some(Self::Text(text)) = self.get(name) { Some(text) } else { None }
    }

    pub fn truth(&self, name: &str) -> Option<bool> {
        if let Some(Self::Truth(truth)) = self.get(name) { Some(*truth) } else { None }
    }
}

/// `None`: this is no JSON.
pub fn parse(text: &str) -> Option<Value> {
    const DEPTH_MAX: u32 = 16;
    let mut reader = Reader { rest: text };
    let value = reader.value(DEPTH_MAX)?;
    reader.rest.trim().is_empty().then_some(value)
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn take(&mut self, wanted: char) -> Option<()> {
        self.rest = self.rest.trim_start().strip_prefix(wanted)?;
        Some(())
    }

    fn value(&mut self, depth: u32) -> Option<Value> {
        self.rest = self.rest.trim_start();
        match self.rest.chars().next()? {
            '{' => self.object(depth.checked_sub(1)?),
            '[' => self.array(depth.checked_sub(1)?),
            '"' => self.text().map(Value::Text),
            _ => Some(self.word()),
        }
    }

    fn object(&mut self, depth: u32) -> Option<Value> {
        self.take('{')?;
        let mut fields = Vec::new();
        if self.take('}').is_some() {
            return Some(Value::Object(fields));
        }
        loop {
            self.rest = self.rest.trim_start();
            let name = self.text()?;
            self.take(':')?;
            fields.push((name, self.value(depth)?));
            if self.take('}').is_some() {
                return Some(Value::Object(fields));
            }
            self.take(',')?;
        }
    }

    fn array(&mut self, depth: u32) -> Option<Value> {
        self.take('[')?;
        if self.take(']').is_some() {
            return Some(Value::Other);
        }
        loop {
            self.value(depth)?;
            if self.take(']').is_some() {
                return Some(Value::Other);
            }
            self.take(',')?;
        }
    }

    fn text(&mut self) -> Option<String> {
        let mut text = String::new();
        let mut chars = self.rest.strip_prefix('"')?.chars();
        loop {
            text.push(match chars.next()? {
                '"' => break,
                '\\' => match chars.next()? {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'u' => {
                        let digits = chars.as_str().get(..4)?;
                        chars = chars.as_str()[4..].chars();
                        // Half of a pair stands for a letter that none of the manager's texts has.
                        char::from_u32(u32::from_str_radix(digits, 16).ok()?).unwrap_or('\u{fffd}')
                    }
                    itself => itself,
                },
                itself => itself,
            });
        }
        self.rest = chars.as_str();
        Some(text)
    }

    /// A number, a truth, or `null`.
    fn word(&mut self) -> Value {
        let end = self.rest.find([',', '}', ']', ' ', '\n', '\r', '\t']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "true" => Value::Truth(true),
            "false" => Value::Truth(false),
            number => number.parse().map_or(Value::Other, Value::Number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_the_manager_is_read() {
        let text = r#"{"schema":1, "host":"a\"\u00e9","protected":false,"reason":null,"list":[1,{"x":[]}],
            "restored":{"term":1,"epoch":18446744073709551615}}"#;
        let value = parse(text).unwrap();
        assert_eq!(value.number("schema"), Some(1));
        assert_eq!(value.text("host"), Some("a\"é"));
        assert_eq!(value.truth("protected"), Some(false));
        assert_eq!(value.text("reason"), None);
        assert_eq!(value.get("restored").unwrap().number("epoch"), Some(u64::MAX));
    }

    #[test]
    fn what_is_none_is_no_value_and_no_panic() {
        let whole = r#"{"a":{"b":"c\u0041"},"d":[1,2]}"#;
        assert!(parse(whole).is_some());
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), None, "{}", &whole[..len]);
        }
        for text in ["{\"a\":1}x", "{1:2}", "\"\\u00é\"", &"[".repeat(100_000)] {
            assert_eq!(parse(text), None);
        }
    }
}
