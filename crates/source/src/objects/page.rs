//! One page of a listing, in XML (all but Google) or JSON.

use percent_encoding::percent_decode_str;
use quick_xml::Reader;
use quick_xml::events::Event;
use serde::Deserialize;

/// Objects, and what to ask for next.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) objects: Vec<Object>,
    /// Token or marker of the next page; absent at the end.
    pub(super) next: Option<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) key: String,
    pub(super) length: Option<u64>,
}

/// Deepest nesting that is followed; no service needs more than six levels.
const DEPTH_MAX: usize = 32;

/// `ListBucketResult` (S3, OSS, OBS, COS) or `EnumerationResults` (Azure).
pub(super) fn of_xml(page: &[u8]) -> Result<Page, String> {
    let page = str::from_utf8(page).map_err(|_| "its answer is no text".to_owned())?;
    let mut reader = Reader::from_str(page);
    let mut listing = Listing::default();
    loop {
        let event = reader
            .read_event()
            .map_err(|error| format!("its answer is no XML: {error}"))?;
        match event {
            Event::Start(tag) => {
                let name = tag.local_name().as_ref().to_owned();
                let escaped = tag.attributes().flatten().any(|attribute| {
                    attribute.key.as_ref() == "Encoded" && attribute.value.as_ref() == "true"
                });
                listing.begin(name, escaped)?;
            }
            Event::End(_) => listing.end()?,
            Event::Text(text) => listing.text.push_str(&text),
            Event::CData(text) => listing.text.push_str(&text),
            Event::GeneralRef(reference) => {
                let resolved = match reference.resolve_char_ref() {
                    Ok(Some(character)) => Some(character),
                    Ok(None) => predefined(&reference),
                    Err(error) => return Err(format!("its answer is no XML: {error}")),
                };
                let unknown = || format!("its answer has the unknown reference &{};", &*reference);
                listing.text.push(resolved.ok_or_else(unknown)?);
            }
            Event::Eof => return listing.finish(),
            _ => {}
        }
    }
}

fn predefined(name: &str) -> Option<char> {
    Some(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => return None,
    })
}

#[derive(Default)]
struct Listing {
    path: Vec<String>,
    text: String,
    escaped: bool,
    root_seen: bool,
    object: Object,
    objects: Vec<Object>,
    truncated: Option<bool>,
    token: Option<String>,
    marker: Option<String>,
}

impl Listing {
    fn begin(&mut self, name: String, escaped: bool) -> Result<(), String> {
        if self.path.is_empty() {
            if !matches!(name.as_str(), "ListBucketResult" | "EnumerationResults") {
                return Err(format!("its answer is <{name}>, which is no listing"));
            }
            self.root_seen = true;
        }
        if self.path.len() >= DEPTH_MAX {
            return Err("its answer is nested too deeply".to_owned());
        }
        self.path.push(name);
        self.text.clear();
        self.escaped = escaped;
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        let text = std::mem::take(&mut self.text);
        let Some(name) = self.path.pop() else {
            return Err("its answer is no XML: it closes what it did not open".to_owned());
        };
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        match (path.as_slice(), name.as_str()) {
            ([_, "Contents"], "Key") => self.object.key = text,
            ([_, "Blobs", "Blob"], "Name") if self.escaped => {
                let decoded = percent_decode_str(&text).decode_utf8();
                self.object.key = decoded.map_err(|error| error.to_string())?.into_owned();
            }
            ([_, "Blobs", "Blob"], "Name") => self.object.key = text,
            ([_, "Contents"], "Size") | ([_, "Blobs", "Blob", "Properties"], "Content-Length") => {
                self.object.length = text.trim().parse().ok();
            }
            ([_], "Contents") | ([_, "Blobs"], "Blob") => {
                self.objects.push(std::mem::take(&mut self.object));
            }
            ([_], "IsTruncated") => self.truncated = Some(text.trim() == "true"),
            ([_], "NextContinuationToken") => self.token = Some(text),
            ([_], "NextMarker") => self.marker = Some(text),
            _ => {}
        }
        Ok(())
    }

    fn finish(self) -> Result<Page, String> {
        if !self.root_seen || !self.path.is_empty() {
            return Err("its answer ends in the middle".to_owned());
        }
        let next = self.token.or(self.marker).filter(|next| !next.is_empty());
        // A service that pages by markers may leave the next one out: it is the last key then.
        let last = || self.objects.last().map(|object| object.key.clone());
        let next = match self.truncated {
            Some(false) => None,
            Some(true) => next.or_else(last),
            None => next,
        };
        Ok(Page {
            objects: self.objects,
            next,
        })
    }
}

#[derive(Deserialize)]
struct JsonPage {
    #[serde(default)]
    items: Vec<JsonObject>,
    #[serde(rename = "nextPageToken")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct JsonObject {
    name: String,
    /// A number in a text.
    size: Option<String>,
}

/// `storage#objects` (Google).
pub(super) fn of_json(page: &[u8]) -> Result<Page, String> {
    let page: JsonPage = serde_json::from_slice(page)
        .map_err(|error| format!("its answer is no listing: {error}"))?;
    let object = |object: JsonObject| Object {
        key: object.name,
        length: object.size.and_then(|size| size.parse().ok()),
    };
    Ok(Page {
        objects: page.items.into_iter().map(object).collect(),
        next: page.next.filter(|next| !next.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(page: &str, keys: &[(&str, Option<u64>)], next: Option<&str>) {
        let page = of_xml(page.as_bytes()).unwrap();
        let found: Vec<_> = page
            .objects
            .iter()
            .map(|object| (object.key.as_str(), object.length))
            .collect();
        assert_eq!(found, keys);
        assert_eq!(page.next.as_deref(), next);
    }

    #[test]
    fn listings_of_every_service_are_read() {
        check(
            r#"<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><IsTruncated>true</IsTruncated>
               <Contents><Key> a &amp; b&#10;c </Key><Size>3</Size><Owner><ID>x</ID></Owner></Contents><Contents><Key>d/</Key><Size>0</Size></Contents>
               <NextContinuationToken>t=1</NextContinuationToken></ListBucketResult>"#,
            &[(" a & b\nc ", Some(3)), ("d/", Some(0))],
            Some("t=1"),
        );
        check(
            "<ListBucketResult><Marker>m</Marker><IsTruncated>true</IsTruncated><Contents><Key>k</Key></Contents></ListBucketResult>",
            &[("k", None)],
            Some("k"),
        );
        check(
            r#"<EnumerationResults ContainerName="c"><Blobs><Blob><Name Encoded="true">a%01</Name><Properties><Content-Length>7</Content-Length></Properties></Blob>
               <BlobPrefix><Name>p/</Name></BlobPrefix></Blobs><NextMarker /></EnumerationResults>"#,
            &[("a\u{1}", Some(7))],
            None,
        );
        check(
            "<ListBucketResult><IsTruncated>false</IsTruncated><NextMarker>x</NextMarker></ListBucketResult>",
            &[],
            None,
        );
        let json = br#"{"kind":"storage#objects","items":[{"name":"a b","size":"12"}],"nextPageToken":"n"}"#;
        let page = of_json(json).unwrap();
        assert_eq!(
            (page.objects[0].length, page.next.as_deref()),
            (Some(12), Some("n"))
        );
        assert_eq!(of_json(b"{}").unwrap(), Page::default());
    }

    #[test]
    fn what_is_no_listing_is_refused() {
        for page in [
            "",
            "<Error><Code>x</Code></Error>",
            "<ListBucketResult><Contents>",
            "<ListBucketResult>&nope;</ListBucketResult>",
            "not xml",
        ] {
            assert!(of_xml(page.as_bytes()).is_err(), "{page}");
        }
        assert!(of_xml(&"<ListBucketResult>".repeat(100).into_bytes()).is_err());
        assert!(of_xml(b"\xff").is_err() && of_json(b"[]x").is_err());
    }

    proptest! {
        #[test]
        fn no_page_makes_the_parser_panic(page in "(<ListBucketResult>|</?Contents>|</?Key>|</?[a-z]>|&amp;|&#0;|&#x110000;|<!--|]]>|x|<|>){0,24}") {
            let _ = of_xml(page.as_bytes());
        }
    }
}
