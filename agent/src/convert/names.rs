//! The forms of names, as `k8s.io/apimachinery/pkg/util/validation` has them.

fn lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// RFC 1123 label: at most 63 of `a-z`, `0-9` and `-`, not beginning or ending with `-`.
pub(super) fn is_dns_label(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len()) && is_label_shaped(bytes)
}

fn is_label_shaped(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| lower_alphanumeric(byte) || byte == b'-')
        && bytes.first().is_some_and(|&byte| byte != b'-')
        && bytes.last().is_some_and(|&byte| byte != b'-')
}

/// RFC 1123 subdomain: at most 253 characters, parts shaped like labels (of any length, as the API server has it)
/// joined by dots.
pub(super) fn is_dns_subdomain(name: &str) -> bool {
    (1..=253).contains(&name.len()) && name.split('.').all(|part| is_label_shaped(part.as_bytes()))
}

pub(super) fn dns_label(name: &str) -> Result<(), String> {
    if is_dns_label(name) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is no RFC 1123 label: use at most 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
    ))
}

pub(super) fn dns_subdomain(name: &str) -> Result<(), String> {
    if is_dns_subdomain(name) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is no RFC 1123 subdomain: use at most 253 of a-z, 0-9, '-' and '.', \
         each part beginning and ending with a letter or digit"
    ))
}

fn is_qualified_part(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}

/// The key of a label: a name with an optional prefix, `example.com/name`.
pub(super) fn label_key(key: &str) -> Result<(), String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_some_and(|prefix| !is_dns_subdomain(prefix)) {
        return Err(format!("{key:?} is no label key: what stands before '/' must be a DNS subdomain"));
    }
    if !is_qualified_part(name) {
        return Err(format!(
            "{key:?} is no label key: the name must be 1 to 63 of letters, digits, '-', '_' and '.', \
             beginning and ending with a letter or digit, after at most one 'prefix/'"
        ));
    }
    Ok(())
}

/// The value of a label: empty, or formed like the name of a key.
pub(super) fn label_value(value: &str) -> Result<(), String> {
    if value.is_empty() || is_qualified_part(value) {
        return Ok(());
    }
    Err(format!(
        "{value:?} is no label value: it must be empty, or at most 63 of letters, digits, '-', '_' and '.', \
         beginning and ending with a letter or digit"
    ))
}

/// The name of a port: IANA_SVC_NAME of RFC 6335 section 5.1, in lower case.
pub(super) fn port_name(name: &str) -> Result<(), String> {
    let bytes = name.as_bytes();
    let fits = (1..=15).contains(&bytes.len())
        && is_label_shaped(bytes)
        && !name.contains("--")
        && bytes.iter().any(u8::is_ascii_lowercase);
    if fits {
        return Ok(());
    }
    let hint = if !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit) {
        " (a number stands without quotes)"
    } else {
        ""
    };
    Err(format!(
        "{name:?} is no port name{hint}: use at most 15 of a-z, 0-9 and '-', at least one letter, \
         no '-' at either end and no two in a row"
    ))
}
