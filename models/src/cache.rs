//! What a model keeps between decoding steps: keys and values, latent caches, recurrent states.
//!
//! Counts are numbers, not bytes: the caller knows the format. Nothing here is sharded: grouped heads divide over tensor
//! parallelism up to their number, latent caches do not.

use crate::arch::{Attention, Block, LinearAttention, Mamba2, Mixer, Mla, Model};
use crate::parameters::{product, sum};

impl Attention {
    /// Keys that the last query of a context of `context` tokens attends to: the window, the selection of an indexer,
    /// compressed tokens of the past.
    pub fn attended(&self, context: u64) -> u64 {
        let near = self.window.map_or(context, |window| window.min(context));
        match (self.variant.compression, &self.variant.indexer) {
            (Some(ratio), indexer) => {
                let entries = context / ratio.max(1);
                near + indexer.as_ref().map_or(entries, |i| i.top_k.min(entries))
            }
            (None, Some(indexer)) => near.min(indexer.top_k),
            (None, None) => near,
        }
    }

    /// Numbers cached for one sequence of `context` tokens.
    pub fn cache_elements(&self, context: u64) -> u64 {
        let width = sum(&[self.key_width(), self.value_width()]);
        let near = self.window.map_or(context, |window| window.min(context));
        // An indexer scores every past entry with one key of its own.
        let index = self.variant.indexer.as_ref().map_or(0, |i| i.head_dim);
        match self.variant.compression {
            Some(ratio) => {
                let entries = context / ratio.max(1);
                sum(&[product(&[near, width]), product(&[entries, sum(&[width, index])])])
            }
            None => sum(&[product(&[near, width]), product(&[context, index])]),
        }
    }
}

impl Mla {
    /// Numbers cached for one sequence of `context` tokens: the latent and the shared rotary key (DeepSeek-V2, section
    /// 2.1.2), and one indexer key where the layer has its own indexer.
    pub fn cache_elements(&self, context: u64) -> u64 {
        let index = match &self.indexer {
            Some(indexer) if !self.indexer_shared => indexer.head_dim,
            _ => 0,
        };
        product(&[context, sum(&[self.kv_lora_rank, self.qk_rope_dim, index])])
    }
}

impl Mamba2 {
    /// Numbers of the recurrent state and of the convolution's tail, whatever the context.
    pub fn state_elements(&self) -> u64 {
        let tail = product(&[self.conv_channels(), self.conv_kernel.saturating_sub(1)]);
        sum(&[product(&[self.inner(), self.state]), tail])
    }
}

impl LinearAttention {
    /// Numbers of the matrix state per head and of the convolution's tail, whatever the context.
    pub fn state_elements(&self) -> u64 {
        let channels = sum(&[self.key_width(), self.key_width(), self.value_width()]);
        let tail = product(&[channels, self.conv_kernel.saturating_sub(1)]);
        sum(&[product(&[self.value_heads, self.key_head_dim, self.value_head_dim]), tail])
    }
}

impl Block {
    /// Numbers that the layer keeps for one sequence of `context` tokens.
    pub fn cache_elements(&self, context: u64) -> u64 {
        match &self.mixer {
            Mixer::Attention(attention) => attention.cache_elements(context),
            Mixer::Mla(mla) => mla.cache_elements(context),
            Mixer::Mamba2(mamba) => mamba.state_elements(),
            Mixer::Linear(linear) => linear.state_elements(),
            Mixer::None => 0,
        }
    }
}

impl Model {
    /// Numbers that all decoder layers keep for one sequence of `context` tokens.
    pub fn cache_elements(&self, context: u64) -> u64 {
        let layers = self.pattern.iter().filter_map(|&kind| self.kinds.get(usize::from(kind)));
        layers.fold(0, |acc, block| acc.saturating_add(block.cache_elements(context)))
    }
}

#[cfg(test)]
mod tests {
    use crate::presets::find;
    use proptest::prelude::*;

    #[test]
    fn cache_per_token_matches_published_tables() {
        // Insights into DeepSeek-V3 (Zhao et al. 2025), table 1: kilobytes per token in BF16.
        for (name, bytes) in [("deepseek-v3", 70_272), ("qwen2.5-72b", 327_680), ("llama3.1-405b", 516_096)] {
            assert_eq!(2 * find(name).unwrap().cache_elements(1), bytes, "{name}");
        }
    }

    #[test]
    fn windows_and_states_do_not_grow() {
        let mistral = find("mistral-7b").unwrap();
        assert_eq!(mistral.cache_elements(4096), mistral.cache_elements(100_000));
        let mamba = find("mamba2-2.7b").unwrap();
        assert_eq!(mamba.cache_elements(0), mamba.cache_elements(1 << 20));
        // 80 heads of 64 with 128 states, and 3 steps of 5,376 convolution channels, in 64 layers.
        assert_eq!(mamba.cache_elements(1), 64 * (80 * 64 * 128 + 3 * 5376));
    }

    #[test]
    fn compressed_attention_attends_to_its_window_and_selection() {
        use crate::arch::Mixer;
        let model = find("deepseek-v4-flash").unwrap();
        let attended = |layer: usize| match &model.block(layer).mixer {
            Mixer::Attention(a) => a.attended(65_536),
            other => panic!("{other:?}"),
        };
        // No compression; ratio 4 with 512 of 16,384 entries; ratio 128 with all 512.
        assert_eq!((attended(0), attended(2), attended(3)), (128, 128 + 512, 128 + 512));
    }

    proptest! {
        #[test]
        fn caches_never_shrink_with_the_context(
            name in proptest::sample::select(crate::presets::names().unwrap()),
            short in 0u64..100_000, more in 0u64..100_000,
        ) {
            let model = find(name).unwrap();
            prop_assert!(model.cache_elements(short) <= model.cache_elements(short + more));
        }
    }
}
