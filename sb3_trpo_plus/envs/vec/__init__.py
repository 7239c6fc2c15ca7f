"""``VecEnv`` classes for many environments: worker processes, Gymnasium's vector environments, EnvPool."""
