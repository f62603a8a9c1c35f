//! Where objects lie, as people write it.
//!
//! ```text
//! file:///ABSOLUTE/PATH
//! s3://BUCKET/PREFIX?region=REGION&endpoint=URL&storage_class=CLASS
//! ```
//! What stands before the `?` is the place; what stands behind it is only how to get there and may
//! change from day to day. A prefix and everything behind the `?` may be left out.

use std::path::PathBuf;
use std::str::FromStr;

/// Bytes of a bucket's name. Source: Amazon S3 User Guide, "General purpose bucket naming rules".
const BUCKET_BYTES: std::ops::RangeInclusive<usize> = 3..=63;

/// An address of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A folder.
    Folder(PathBuf),
    /// A bucket of Amazon S3, or of another service that speaks like it.
    Bucket(Bucket),
}

/// A bucket and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// What names of objects begin with there; may be empty.
    pub prefix: String,
    /// Its region; nothing for that of the environment, the profile or the instance.
    pub region: Option<String>,
    /// Address of the service in place of the region's own.
    pub endpoint: Option<String>,
    /// Storage class of what is put, as the service names it.
    pub storage_class: Option<String>,
}

/// A text that is no address.
#[derive(Debug, thiserror::Error)]
#[error("{text} is no place for objects: {why}; write file:///PATH or s3://BUCKET/PREFIX")]
pub struct AddressError {
    text: String,
    why: String,
}

/// The place in an address, without how to get there.
pub fn place_of(address: &str) -> &str {
    address.split_once('?').filter(|_| address.starts_with("s3://")).map_or(address, |it| it.0)
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |why: String| AddressError { text: text.to_owned(), why };
        if let Some(path) = text.strip_prefix("file://") {
            return match path.starts_with('/') && path.len() > 1 {
                true => Ok(Self::Folder(PathBuf::from(path))),
                false => Err(wrong("it names no folder by an absolute path".to_owned())),
            };
        }
        let Some(rest) = text.strip_prefix("s3://") else {
            return Err(wrong("there is no such kind".to_owned()));
        };
        bucket(rest).map(Self::Bucket).map_err(wrong)
    }
}

/// Errors: why it is none.
fn bucket(rest: &str) -> Result<Bucket, String> {
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (name, prefix) = place.split_once('/').unwrap_or((place, ""));
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    if !BUCKET_BYTES.contains(&name.len()) || !name.bytes().all(allowed) {
        return Err(format!("`{name}` cannot be a bucket's name"));
    }
    let prefix = prefix.trim_matches('/').to_owned();
    if prefix.split('/').any(|part| [".", ".."].contains(&part)) {
        return Err(format!("`{prefix}` leads elsewhere"));
    }
    let mut bucket =
        Bucket { name: name.to_owned(), prefix, region: None, endpoint: None, storage_class: None };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=').filter(|(_, value)| !value.is_empty()) else {
            return Err(format!("`{pair}` has no value"));
        };
        let kept = match key {
            "region" => &mut bucket.region,
            "endpoint" if !["http://", "https://"].iter().any(|it| value.starts_with(it)) => {
                return Err(format!("endpoint is {value}, which is neither http:// nor https://"));
            }
            "endpoint" => &mut bucket.endpoint,
            "storage_class" => &mut bucket.storage_class,
            _ => return Err(format!("`{key}` is not region, endpoint or storage_class")),
        };
        *kept = Some(value.to_owned());
    }
    Ok(bucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Address, String> {
        text.parse().map_err(|error: AddressError| error.to_string())
    }

    #[test]
    fn addresses_say_where_and_how() {
        assert_eq!(parse("file:///mnt/a?b"), Ok(Address::Folder(PathBuf::from("/mnt/a?b"))));
        let Ok(Address::Bucket(bucket)) = parse("s3://my.bucket-1") else { panic!() };
        assert_eq!((bucket.name.as_str(), bucket.prefix.as_str()), ("my.bucket-1", ""));
        let text = "s3://bucket/a/b/?region=eu-central-1&endpoint=http://[::1]:9000&\
                    storage_class=STANDARD_IA";
        let Ok(Address::Bucket(bucket)) = parse(text) else { panic!() };
        assert_eq!(bucket.prefix, "a/b");
        assert_eq!(bucket.region.as_deref(), Some("eu-central-1"));
        assert_eq!(bucket.endpoint.as_deref(), Some("http://[::1]:9000"));
        assert_eq!(bucket.storage_class.as_deref(), Some("STANDARD_IA"));
        assert_eq!(place_of(text), "s3://bucket/a/b/");
        assert_eq!(place_of("file:///mnt/a?b"), "file:///mnt/a?b");
    }

    #[test]
    fn what_is_none_says_why() {
        for (text, why) in [
            ("", "no such kind"),
            ("/a", "no such kind"),
            ("s4://bucket", "no such kind"),
            ("file://a", "absolute path"),
            ("file:///", "absolute path"),
            ("s3://", "bucket's name"),
            ("s3://ab/c", "bucket's name"),
            ("s3://My_Bucket/c", "bucket's name"),
            ("s3://bucket/../c", "leads elsewhere"),
            ("s3://bucket?region", "has no value"),
            ("s3://bucket?region=", "has no value"),
            ("s3://bucket?endpoint=host:1", "neither http://"),
            ("s3://bucket?secret=1", "is not region"),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.contains(why) && said.contains("s3://BUCKET"), "{text}: {said}");
        }
    }
}
