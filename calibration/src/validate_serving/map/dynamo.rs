//! Releases of engines inside Dynamo's containers, whose tags are Dynamo's own.

/// Major and minor number.
type Release = (u32, u32);

/// TensorRT-LLM in `tensorrtllm-runtime` of each release of Dynamo (support matrix of Dynamo 0.9.1 and 1.0.0,
/// docs.nvidia.com/dynamo; 0.5 as 0.6).
const TENSORRT_LLM: &[(Release, Release)] = &[
    ((0, 5), (1, 1)),
    ((0, 6), (1, 1)),
    ((0, 7), (1, 2)),
    ((0, 8), (1, 2)),
    ((0, 9), (1, 3)),
    ((1, 0), (1, 3)),
];

/// What the tags of its containers begin with.
const CONTAINER: &str = "tensorrtllm-runtime:";

/// The engine's release where `printed`, the first of `text`, is that of a container of Dynamo; else `printed`. Newer
/// containers than the table's hold newer engines.
pub(super) fn engine_release(text: &str, printed: Option<Release>) -> Option<Release> {
    let Some((_, tag)) = text.split_once(CONTAINER) else { return printed };
    let tag = super::release(tag)?;
    if printed != Some(tag) {
        return printed;
    }
    TENSORRT_LLM.iter().find(|(dynamo, _)| *dynamo == tag).map(|(_, engine)| *engine)
}

#[cfg(test)]
mod tests {
    use super::super::{engine_for, release};
    use super::*;

    #[test]
    fn a_release_of_dynamo_is_not_that_of_the_engine() {
        for (text, wanted) in [
            ("trtllm 0.8.1.post2 (nvidia/ai-dynamo/tensorrtllm-runtime:0.8.1.post2)", Some((1, 2))),
            ("dynamo-trt (nvidia/ai-dynamo/tensorrtllm-runtime:0.5.1-rc0.pre3)", Some((1, 1))),
            ("trtllm 1.3.0rc5 (nvidia/ai-dynamo/tensorrtllm-runtime:0.8.1)", Some((1, 3))),
            ("trtllm 1.7.0 (nvidia/ai-dynamo/tensorrtllm-runtime:1.7.0)", None),
            ("TensorRT-LLM 0.9.0", Some((0, 9))),
        ] {
            assert_eq!(engine_release(text, release(text)), wanted, "{text}");
        }
        let text = "trtllm 0.8.1.post2 (nvidia/ai-dynamo/tensorrtllm-runtime:0.8.1.post2)";
        assert_eq!(engine_for(text, "GB200").0, "trtllm-1.0");
    }
}
