//! The file of settings.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::SettingsError;

/// A key of the file with what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: u64,
    pub(super) values: Vec<String>,
}

/// Reads a text. `path` is for messages.
pub(super) fn read(path: &Path, text: &str) -> Result<Vec<Entry>, SettingsError> {
    let options = serde_saphyr::options! {
        // `source-validation: on` is a word, not a truth as in YAML 1.1.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
    };
    let entries: Option<Entries> = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let message = error.render_with_options(serde_saphyr::render_options! {
            formatter: &serde_saphyr::UserMessageFormatter,
            snippets: serde_saphyr::SnippetMode::Off,
        });
        SettingsError::File { path: path.to_owned(), message }
    })?;
    Ok(entries.unwrap_or(Entries(Vec::new())).0)
}

/// All keys, in the file's order.
struct Entries(Vec<Entry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("settings, each as `name: value`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<Spanned<String>>()? {
                    let Values(values) = map.next_value()?;
                    entries.push(Entry { line: key.referenced.line(), key: key.value, values });
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// What a key says: one value, a list, or pairs (`flow-lifetime: {udp: 30s}` is `udp=30s`).
struct Values(Vec<String>);

/// One value, as the text that a flag would have.
struct Scalar(String);

/// Texts, truths and numbers.
macro_rules! scalars {
    ($wrap:expr) => {
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok($wrap(text.to_owned()))
        }

        fn visit_bool<E: serde::de::Error>(self, truth: bool) -> Result<Self::Value, E> {
            Ok($wrap(truth.to_string()))
        }

        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Self::Value, E> {
            Ok($wrap(number.to_string()))
        }

        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Self::Value, E> {
            Ok($wrap(number.to_string()))
        }

        fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Self::Value, E> {
            Ok($wrap(number.to_string()))
        }

        fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
            Err(E::custom("there is no value; give one, or leave the key out"))
        }
    };
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;
        impl<'de> Visitor<'de> for One {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number, true or false")
            }

            scalars!(Scalar);
        }
        deserializer.deserialize_any(One)
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Values;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or a list of values")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Values, A::Error> {
                let mut values = Vec::new();
                while let Some(Scalar(value)) = items.next_element()? {
                    values.push(value);
                }
                match values.is_empty() {
                    true => Err(A::Error::custom("the list is empty; give a value, or leave the key out")),
                    false => Ok(Values(values)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Values, A::Error> {
                let mut values = Vec::new();
                while let Some((key, Scalar(value))) = pairs.next_entry::<String, _>()? {
                    values.push(format!("{key}={value}"));
                }
                Ok(Values(values))
            }

            scalars!(|text| Values(vec![text]));
        }
        deserializer.deserialize_any(Any)
    }
}
